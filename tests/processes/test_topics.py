"""Streams under kills: workers and the broker end in the middle of everything, and every message is answered."""

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
    """A RabbitMQ of the test's own, which can be killed and started again with what it kept."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary, self._folder = binary, folder
        port, distribution, self._epmd = free_ports(3)
        self._port = port
        self._env = rabbitmq_env(folder, port, distribution, self._epmd)
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/"
        self._stack = contextlib.ExitStack()
        self._names = contextlib.ExitStack()

    async def start(self) -> None:
        await asyncio.to_thread(self._names.enter_context, epmd_at(self._folder, self._epmd))
        await self._serve()

    async def kill_and_start(self) -> None:
        await asyncio.to_thread(self._stack.close)  # SIGKILL
        await self._serve()

    async def stop(self) -> None:
        await asyncio.to_thread(self._stack.close)
        await asyncio.to_thread(self._names.close)

    async def _serve(self) -> None:
        server = rabbitmq_at(self._binary, self._folder, self._port, self._env)
        await asyncio.to_thread(self._stack.enter_context, server)


@pytest.fixture
async def rabbit(rabbitmq_url: str, tmp_path: Path, anyio_backend: object) -> AsyncIterator[Rabbit]:
    """Yield a RabbitMQ that may be killed; the run's own says whether there is one."""
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


class Sender:
    """Sends every message with a confirm, and keeps every answer; goes on when the broker is back."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers = defaultdict[int, list[tuple[str, Any]]](list)

    async def send(self, numbers: range) -> None:
        """Returns when the broker has all of them; one that it may have twice has the same id."""
        left = list(numbers)
        while left:
            with contextlib.suppress(Exception):
                async with await aio_pika.connect(self._url, timeout=5) as connection:
                    channel = await connection.channel()
                    await channel.declare_queue("requests", durable=True, arguments={"x-queue-type": "quorum"})
                    while left:
                        async with asyncio.timeout(60):
                            await channel.default_exchange.publish(_message(left[-1]), "requests")
                        left.pop()

    async def receive(self, count: int) -> None:
        """Returns when there is an answer to each."""
        while len(self.answers) < count:
            with contextlib.suppress(Exception):
                async with await aio_pika.connect(self._url, timeout=5) as connection:
                    channel = await connection.channel()
                    await channel.set_qos(prefetch_count=100)
                    arguments = {"x-queue-type": "quorum"}
                    queue = await channel.declare_queue("responses", durable=True, arguments=arguments)
                    async with queue.iterator(timeout=5) as messages:
                        async for message in messages:
                            body = json.loads(message.body)
                            self.answers[body["metadata"]["n"]].append((message.message_id or "", body))
                            await message.ack()
                            if len(self.answers) >= count:
                                return


def _message(number: int) -> aio_pika.Message:
    body = {"model": "echo/delay=0.02", "prompt": f"say {number}"}
    asked = {"path": "/v1/completions", "metadata": {"n": number}, "body": body}
    return aio_pika.Message(
        json.dumps(asked).encode(),
        # half of them as clients that know of no ids
        message_id=f"m{number}" if number % 2 else None,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )


async def every_message_is_answered(
    tmp_path: Path, rabbit: Rabbit, database: str, count: int, kills: int, restarts: int
) -> None:
    config = tmp_path / "signoff.toml"
    config.write_text(CONFIG.format(url=rabbit.url))
    environment = clean_environment(tmp_path / "data", SIGNOFF_DATABASE_URL=database, SIGNOFF_CONFIG=str(config))
    signoff(environment, "migrate")
    signoff(environment, "user", "create", "sender@example.com", "--role", "user")
    sender, random_float = Sender(rabbit.url), random.Random(count)
    # without an id what is sent twice is two messages, so those are sent while the broker stands
    await sender.send(range(0, count, 2))
    workers = [start_worker(environment, stderr=subprocess.DEVNULL) for _ in range(2)]

    def so_far(part: float) -> Callable[[], bool]:
        return lambda: len(sender.answers) >= part * count

    async def strike() -> None:
        """Each blow falls when so much has been answered: under load, and whatever the machine's speed."""
        blows = ["kill"] * kills + ["restart"] * restarts
        random_float.shuffle(blows)
        for number, blow in enumerate(blows, 1):
            while not so_far(0.8 * number / (len(blows) + 1))():
                await asyncio.sleep(0.02)
            if blow == "kill":
                victim = workers.pop(0)
                victim.send_signal(signal.SIGKILL)
                await asyncio.to_thread(victim.wait)
                workers.append(start_worker(environment, stderr=subprocess.DEVNULL))
            else:
                await rabbit.kill_and_start()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(sender.send(range(1, count, 2)))
            group.create_task(sender.receive(count))
            group.create_task(strike())
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

    assert {*sender.answers} == {*range(count)}
    for number, answers in sender.answers.items():
        assert len({message_id for message_id, _ in answers}) == 1, "duplicates of a reply share an id"
        for _, body in answers:
            assert (body["status_code"], body["metadata"]) == (200, {"n": number})
            assert body["body"]["choices"][0]["text"] == f"say {number}"
        assert len({json.dumps(body, sort_keys=True) for _, body in answers}) == 1, "and no job has two answers"


async def test_every_message_is_answered_while_workers_and_the_broker_are_killed(
    tmp_path: Path, rabbit: Rabbit, postgres_url: str
) -> None:
    await every_message_is_answered(tmp_path, rabbit, postgres_url, 150, kills=2, restarts=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_every_one_of_5000_messages_is_answered_while_everything_is_killed(
    tmp_path: Path, rabbit: Rabbit, postgres_url: str
) -> None:
    await every_message_is_answered(tmp_path, rabbit, postgres_url, 5000, kills=12, restarts=4)
