"""Streams under failures: workers and the broker are killed, and every message is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from support.processes import clean_environment, signoff, start_worker
from support.service_supervisor import epmd_at, free_ports, rabbitmq_at, rabbitmq_binary, rabbitmq_env

pytestmark = pytest.mark.anyio

CONFIG = """
[[streams]]
name = "kills"
url = "{url}"
requests = "requests"
responses = "responses"
max_handlers = 8
backoff_max_seconds = 0.5
as = "sender@example.com"
"""


class Rabbit:
    """A RabbitMQ for one test, which can be killed and restarted with its data."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary, self._folder = binary, folder
        port, distribution, self._epmd = free_ports(3)
        self._port = port
        self._env = rabbitmq_env(folder, port, distribution, self._epmd)
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/"
        self._stack = contextlib.ExitStack()
        self._names = contextlib.ExitStack()

    async def start(self) -> None:
        """Start the port mapper of Erlang and the broker."""
        await asyncio.to_thread(self._names.enter_context, epmd_at(self._folder, self._epmd))
        await self._serve()

    async def kill_and_start(self) -> None:
        """Kill the broker with SIGKILL, and start it again with its data."""
        await asyncio.to_thread(self._stack.close)  # SIGKILL
        await self._serve()

    async def stop(self) -> None:
        """Stop the broker and the port mapper."""
        await asyncio.to_thread(self._stack.close)
        await asyncio.to_thread(self._names.close)

    async def _serve(self) -> None:
        server = rabbitmq_at(self._binary, self._folder, self._port, self._env)
        await asyncio.to_thread(self._stack.enter_context, server)


@pytest.fixture
async def rabbit(rabbitmq_url: str, tmp_path: Path, anyio_backend: object) -> AsyncIterator[Rabbit]:
    """Yield a RabbitMQ that can be killed; `rabbitmq_url` skips or fails the test if RabbitMQ is not installed."""
    binary = rabbitmq_binary()
    assert binary is not None
    folder = tmp_path / "rabbit"
    folder.mkdir()
    rabbit = Rabbit(binary, folder)
    await rabbit.start()
    try:
        yield rabbit
    finally:
        await rabbit.stop()


class TopicClient:
    """A client that sends every message with a confirm and keeps every answer, and reconnects to the broker."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers = defaultdict[int, list[tuple[str, Any]]](list)

    async def send(self, numbers: range) -> None:
        """Send the messages; return when the broker has confirmed all. A message that is sent twice has the same id."""
        remaining = list(numbers)
        while remaining:
            with contextlib.suppress(Exception):
                async with await aio_pika.connect(self._url, timeout=5) as connection:
                    channel = await connection.channel()
                    await channel.declare_queue("requests", durable=True)
                    while remaining:
                        async with asyncio.timeout(60):
                            await channel.default_exchange.publish(_message(remaining[-1]), "requests")
                        remaining.pop()

    async def receive(self, count: int) -> None:
        """Return when there is an answer to each of `count` messages."""
        while len(self.answers) < count:
            with contextlib.suppress(Exception):
                async with await aio_pika.connect(self._url, timeout=5) as connection:
                    channel = await connection.channel()
                    await channel.set_qos(prefetch_count=100)
                    queue = await channel.declare_queue("responses", durable=True)
                    async with queue.iterator(timeout=5) as messages:
                        async for message in messages:
                            body = json.loads(message.body)
                            self.answers[body["metadata"]["n"]].append((message.message_id or "", body))
                            await message.ack()
                            if len(self.answers) >= count:
                                return


def has_id(number: int) -> bool:
    """Return True if message `number` has an id or a correlation id, by which the server recognizes it."""
    return number % 4 != 0


def _message(number: int) -> aio_pika.Message:
    """Return message `number`, a persistent request for a completion."""
    body = {"model": "echo/delay=0.02", "prompt": f"say {number}"}
    request = {"path": "/v1/completions", "metadata": {"n": number}, "body": body}
    return aio_pika.Message(
        json.dumps(request).encode(),
        # half of the messages have no id, as from clients that set none, and half of those no correlation id
        message_id=f"m{number}" if number % 2 else None,
        correlation_id=f"c{number}" if has_id(number) and not number % 2 else None,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )


async def assert_every_message_is_answered(
    tmp_path: Path, rabbit: Rabbit, database: str, count: int, kills: int, restarts: int
) -> None:
    """Send messages while workers and the broker are killed, and assert that each is answered once."""
    config = tmp_path / "signoff.toml"
    config.write_text(CONFIG.format(url=rabbit.url))
    environment = clean_environment(tmp_path / "data", SIGNOFF_DATABASE_URL=database, SIGNOFF_CONFIG=str(config))
    signoff(environment, "migrate")
    signoff(environment, "user", "create", "sender@example.com", "--role", "user")
    client, rng = TopicClient(rabbit.url), random.Random(count)
    # A repeated message without an id is a second message, so these are sent before the broker is killed.
    await client.send(range(0, count, 2))
    workers = [start_worker(environment, stderr=subprocess.DEVNULL) for _ in range(2)]

    def has_answers(share: float) -> Callable[[], bool]:
        return lambda: len(client.answers) >= share * count

    async def inject_faults() -> None:
        """Kill workers and the broker, each time at a given share of the answers, so that it happens under load."""
        faults = ["kill"] * kills + ["restart"] * restarts
        rng.shuffle(faults)
        for number, fault in enumerate(faults, 1):
            while not has_answers(0.8 * number / (len(faults) + 1))():
                await asyncio.sleep(0.02)
            if fault == "kill":
                worker_process = workers.pop(0)
                worker_process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(worker_process.wait)
                workers.append(start_worker(environment, stderr=subprocess.DEVNULL))
            else:
                await rabbit.kill_and_start()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(client.send(range(1, count, 2)))
            group.create_task(client.receive(count))
            group.create_task(inject_faults())
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

    assert_answers(client, count)


def assert_answers(client: TopicClient, count: int) -> None:
    """Assert that each message has its answer, and one with an id no second one."""
    assert {*client.answers} == {*range(count)}
    for number, answers in client.answers.items():
        if has_id(number):
            assert len({message_id for message_id, _ in answers}) == 1, "duplicates of a reply share an id"
        for _, body in answers:
            assert (body["status_code"], body["metadata"]) == (200, {"n": number})
            assert body["body"]["choices"][0]["text"] == f"say {number}"
        for message_id in {message_id for message_id, _ in answers}:
            bodies = {json.dumps(body, sort_keys=True) for each, body in answers if each == message_id}
            assert len(bodies) == 1, "and no job has two answers"


async def test_every_message_is_answered_while_workers_and_the_broker_are_killed(
    tmp_path: Path, rabbit: Rabbit, postgres_url: str
) -> None:
    await assert_every_message_is_answered(tmp_path, rabbit, postgres_url, 60, kills=1, restarts=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_each_of_5000_messages_is_answered_while_workers_and_the_broker_are_killed(
    tmp_path: Path, rabbit: Rabbit, postgres_url: str
) -> None:
    await assert_every_message_is_answered(tmp_path, rabbit, postgres_url, 5000, kills=12, restarts=4)
