"""Wake-ups through RabbitMQ: shared by processes and not lost, even if the server, the queue or a connection fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import AsyncMock

import aio_pika
import pytest
from aio_pika.abc import DeliveryMode
from pamqp import commands, frame
from structlog.testing import capture_logs

from fakes.tcp_proxy import TcpProxy
from signoff.brokers import amqp
from signoff.commands.doctor import run_checks
from signoff.core.stream import Stream, public_address
from signoff.settings import Settings
from signoff.transports.registry import TransportRegistry
from support.brokers import (
    QUIET_SECONDS,
    WAIT_SECONDS,
    a_rabbit,
    channel,
    drained,
    started,
    until,
    until_heard_by,
    waiting,
)
from support.processes import ask, clean_environment, first_token, free_port, served, signoff, verbs, worked

pytestmark = pytest.mark.anyio


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a broker that closes take its time to send what is unsent."""
    monkeypatch.setattr("signoff.brokers.rabbitmq.FLUSH_SECONDS", WAIT_SECONDS)


@pytest.fixture
async def queue(rabbitmq_url: str, prefix: str) -> AsyncIterator[str]:
    """Yield the name of a queue, and delete the queue afterwards."""
    yield prefix
    async with channel(rabbitmq_url) as other:
        await other.queue_delete(prefix)


@pytest.fixture
async def wire(rabbitmq_url: str) -> AsyncIterator[TcpProxy]:
    """Yield a proxy to the server that can cut its connections."""
    async with TcpProxy(rabbitmq_url) as proxy:
        yield proxy


# Wake-ups between processes.


async def test_each_wake_up_reaches_one_of_two_listeners(rabbitmq_url: str, queue: str) -> None:
    async with (
        started(a_rabbit(rabbitmq_url, queue)) as publisher,
        started(a_rabbit(rabbitmq_url, queue), listening=True) as first,
        started(a_rabbit(rabbitmq_url, queue), listening=True) as second,
    ):
        for number in range(10):
            polls = [asyncio.ensure_future(listener.poll(WAIT_SECONDS)) for listener in (first, second)]
            await asyncio.sleep(0)
            publisher.notify(f"job-{number}", 0)
            done, pending = await asyncio.wait(polls, timeout=WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in done] == [True]
            pending.pop().cancel()
        async with asyncio.TaskGroup() as group:
            polls_after = [group.create_task(listener.poll(QUIET_SECONDS)) for listener in (first, second)]
        assert [task.result() for task in polls_after] == [False, False]
    assert await waiting(rabbitmq_url, queue) == 0


async def test_many_wake_ups_at_once_reach_all_listeners(rabbitmq_url: str, queue: str) -> None:
    async with (
        started(a_rabbit(rabbitmq_url, queue)) as publisher,
        started(a_rabbit(rabbitmq_url, queue), listening=True) as first,
        started(a_rabbit(rabbitmq_url, queue), listening=True) as second,
    ):
        polls = [asyncio.ensure_future(listener.poll(WAIT_SECONDS)) for listener in (first, second)]
        async with channel(rabbitmq_url) as inspector:
            await until_heard_by(2, inspector, queue)
        for number in range(40):
            publisher.notify(f"job-{number}", 0)
        assert [await poll for poll in polls] == [True, True]


async def test_ten_thousand_wake_ups_are_read_quickly(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as publisher:
        for number in range(10_000):
            publisher.notify(f"01890a5d-ac96-774b-bcce-{number:012d}", number % 10)
    began = time.monotonic()
    async with started(a_rabbit(rabbitmq_url, queue)) as listener:
        assert await listener.poll(WAIT_SECONDS)
        assert await drained(listener) < 50
    assert time.monotonic() - began < 20
    assert await waiting(rabbitmq_url, queue) == 0


@pytest.mark.usefixtures("patient")
async def test_a_wake_up_waits_for_a_listener(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as publisher:
        publisher.notify("one", 0)
        publisher.notify("one", 0)
        publisher.notify("two", 0)
    # then the messages are persistent, and contain the ids of the jobs
    async with channel(rabbitmq_url) as other:
        messages = [await (await other.get_queue(queue)).get(timeout=WAIT_SECONDS) for _ in range(2)]
        assert {message.body for message in messages} == {b"one", b"two"}
        assert {message.delivery_mode for message in messages} == {DeliveryMode.PERSISTENT}
        await messages[-1].nack(multiple=True)
    async with started(a_rabbit(rabbitmq_url, queue)) as listener:
        assert await listener.poll(WAIT_SECONDS)


async def test_the_queue_is_durable_and_bounded(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)), channel(rabbitmq_url) as other:
        # an equal declaration is accepted, any other one is refused
        await other.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum", "x-max-length": 10_000})
        with pytest.raises(aio_pika.exceptions.ChannelPreconditionFailed):
            await other.declare_queue(queue, durable=True)


async def test_an_existing_queue_is_used_as_it_is(rabbitmq_url: str, queue: str) -> None:
    async with channel(rabbitmq_url) as other:
        await other.declare_queue(queue, auto_delete=True, arguments={"x-max-priority": 5, "x-max-length": 7})
        async with started(a_rabbit(rabbitmq_url, queue)) as broker:
            broker.notify("job", 9)
            assert await broker.poll(WAIT_SECONDS)
            assert await drained(broker) == 0


async def test_a_message_of_another_program_stays_in_the_queue(rabbitmq_url: str, queue: str) -> None:
    with capture_logs() as logs:
        async with channel(rabbitmq_url) as other, started(a_rabbit(rabbitmq_url, queue)) as broker:
            await other.default_exchange.publish(aio_pika.Message(b'{"job_id": 1}'), queue)
            assert not await broker.poll(1)
            await until(lambda: logs)
    assert "message of another program" in logs[-1]["error"]
    assert await waiting(rabbitmq_url, queue) == 1


async def test_an_unusual_job_id_does_not_stop_wake_ups(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as broker:
        for job_id in ("\udcff", "", "x" * 300_000):
            broker.notify(job_id, 0)
            assert await broker.poll(WAIT_SECONDS)


# Wake-ups that go to another listener.


async def test_an_unread_wake_up_goes_to_another_listener(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as publisher, started(a_rabbit(rabbitmq_url, queue)) as busy:
        # given a wake-up that is delivered to a listener that is busy now
        for _ in range(2):
            await busy.poll(0.05)
        publisher.notify("job", 0)
        # then another listener reads the wake-up soon, and the first one does not
        async with started(a_rabbit(rabbitmq_url, queue)) as other:
            assert await other.poll(WAIT_SECONDS)
            assert await other.poll(0) is False
            assert await busy.poll(QUIET_SECONDS) is False


async def test_a_wake_up_that_was_read_and_not_acknowledged_goes_to_another_listener(
    rabbitmq_url: str, queue: str
) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as busy:
        busy.notify("job", 0)
        assert await busy.poll(WAIT_SECONDS)
        async with started(a_rabbit(rabbitmq_url, queue)) as other:
            assert await other.poll(WAIT_SECONDS)


async def test_a_wake_up_of_a_dying_worker_goes_to_another_listener(
    wire: TcpProxy, rabbitmq_url: str, queue: str
) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as other, started(a_rabbit(wire.url, queue)) as dying:
        other.notify("job", 0)
        assert await dying.poll(WAIT_SECONDS)
        await wire.shut()
        assert await other.poll(WAIT_SECONDS)


async def test_an_acknowledged_wake_up_is_not_repeated(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as broker:
        broker.notify("job", 0)
        assert await broker.poll(WAIT_SECONDS)
        # when the listener polls again, there is no second wake-up
        assert await broker.poll(QUIET_SECONDS) is False
    assert await waiting(rabbitmq_url, queue) == 0


# Failures.


async def test_local_wake_ups_do_not_acknowledge_a_message_twice(rabbitmq_url: str, queue: str) -> None:
    with capture_logs() as logs:
        async with started(a_rabbit(rabbitmq_url, queue), listening=True) as broker:
            # given a wake-up that was read and acknowledged
            broker.notify("job", 5)
            assert await broker.poll(WAIT_SECONDS)
            await broker.poll(QUIET_SECONDS)
            # when RabbitMQ blocks publishers, and local wake-ups arrive instead
            broker._publish_connection.is_up = False
            for _ in range(3):
                broker.wake_local()
                assert await broker.poll(WAIT_SECONDS)
                await broker.poll(QUIET_SECONDS)
    # then the consumer's connection stays open
    assert [entry for entry in logs if entry.get("connection") == "signoff consumer"] == []


async def test_wake_ups_get_through_once_the_server_is_back(wire: TcpProxy, rabbitmq_url: str, queue: str) -> None:
    # given a server that cannot be reached
    await wire.shut()
    broker = a_rabbit(wire.url, queue)
    with capture_logs() as logs:
        await broker.start()
        await until(lambda: logs)
    assert "cannot be reached" in logs[0]["error"]
    assert not broker.is_connected
    # when a wake-up is sent, then this process receives it
    broker.notify("job", 0)
    assert await broker.poll(WAIT_SECONDS)
    # and other processes receive it when the server is back
    await wire.open()
    async with started(a_rabbit(rabbitmq_url, queue)) as other:
        assert await other.poll(WAIT_SECONDS)
    await until(lambda: broker.is_connected)
    await broker.close()


async def test_a_connection_that_was_cut_is_replaced(wire: TcpProxy, queue: str) -> None:
    async with started(a_rabbit(wire.url, queue), listening=True) as broker:
        for number in range(3):
            wire.cut()
            await until(lambda: not broker.is_connected)
            await until(lambda: broker.is_connected)
            await drained(broker)
            broker.notify(f"job-{number}", 0)
            assert await broker.poll(WAIT_SECONDS)


async def test_a_connection_that_an_operator_closes_is_replaced(wire: TcpProxy, queue: str) -> None:
    async with started(a_rabbit(wire.url, queue), listening=True) as broker:
        with capture_logs() as logs:
            wire.tell_clients(frame.marshal(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0), 0))
            await until(lambda: not broker.is_connected)
        assert logs
        await until(lambda: broker.is_connected)
        await drained(broker)
        broker.notify("job", 0)
        assert await broker.poll(WAIT_SECONDS)


async def test_a_publisher_notices_a_silent_connection(
    wire: TcpProxy, rabbitmq_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signoff.brokers.rabbitmq.ANSWER_SECONDS", 0.3)
    async with started(a_rabbit(wire.url, queue)) as broker, started(a_rabbit(rabbitmq_url, queue)) as other:
        wire.block()
        with capture_logs() as logs:
            broker.notify("job", 0)
            await until(lambda: not broker.is_connected)
        assert "did not answer" in logs[0]["error"]
        wire.unblock()
        assert await other.poll(WAIT_SECONDS)


async def test_a_listener_notices_a_silent_connection(wire: TcpProxy, queue: str) -> None:
    async with started(a_rabbit(f"{wire.url}?heartbeat=1", queue), listening=True) as broker:
        wire.block()
        await until(lambda: not broker.is_connected)
        wire.unblock()
        await until(lambda: broker.is_connected)


async def test_a_listener_is_woken_again_after_the_queue_was_deleted(rabbitmq_url: str, queue: str) -> None:
    async with (
        started(a_rabbit(rabbitmq_url, queue)) as publisher,
        started(a_rabbit(rabbitmq_url, queue), listening=True) as listener,
        channel(rabbitmq_url) as other,
    ):
        poll = asyncio.ensure_future(listener.poll(WAIT_SECONDS))
        await until_heard_by(1, other, queue)
        with capture_logs() as logs:
            await other.queue_delete(queue)
            await until(lambda: logs)
        assert "was deleted" in logs[0]["error"]
        await until(lambda: listener.is_connected)
        publisher.notify("job", 0)
        assert await poll


async def test_a_wake_up_declares_a_deleted_queue_again(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as broker, channel(rabbitmq_url) as other:
        await other.queue_delete(queue)
        broker.notify("job", 0)
        assert await broker.poll(WAIT_SECONDS)
        await drained(broker)
    assert await waiting(rabbitmq_url, queue) == 0


async def test_a_full_queue_drops_wake_ups_and_keeps_the_connection(rabbitmq_url: str, queue: str) -> None:
    async with channel(rabbitmq_url) as other:
        await other.declare_queue(queue, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        with capture_logs() as logs:
            async with started(a_rabbit(rabbitmq_url, queue)) as broker:
                for number in range(50):
                    broker.notify(f"job-{number}", 0)
                await until(lambda: logs)
                assert broker.is_connected
        [entry] = logs
        assert "dropped" in entry["event"]
    assert await waiting(rabbitmq_url, queue) == 1


@pytest.mark.usefixtures("patient")
async def test_too_many_wake_ups_drop_the_oldest_with_one_log_entry(
    wire: TcpProxy, rabbitmq_url: str, queue: str
) -> None:
    await wire.shut()
    broker = a_rabbit(wire.url, queue)
    for number in range(10_500):
        broker.notify(f"job-{number}", 0)
    await wire.open()
    with capture_logs() as logs:
        await until(lambda: broker.is_connected)
        await broker.close()
    assert [entry["count"] for entry in logs if "dropped" in entry["event"]] == [500]
    async with channel(rabbitmq_url) as other:
        message = await (await other.get_queue(queue)).get(timeout=WAIT_SECONDS)
        assert message.body.startswith(b"job-500\n")


async def test_attempts_to_connect_are_spaced(wire: TcpProxy, queue: str) -> None:
    # given a server that accepts connections and closes them
    broker = a_rabbit(wire.url.replace("guest@", "wrong@"), queue)
    await broker.start()
    await until(lambda: wire.calls == 1)
    began = time.monotonic()
    await until(lambda: wire.calls >= 4)
    # then the waits between attempts grow: 0.1, 0.2, 0.4 s
    assert time.monotonic() - began > 0.6
    await broker.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("guest:guest@", "guest:s3cret@"), "refuses the login 'guest': check the user and the password"),
        (("guest:guest@", "Zoë:s3cret@"), "refuses the login 'Zoë'"),
        (
            ("/?", "/elsewhere?"),
            "refuses the virtual host 'elsewhere': check that it exists",
        ),
        (("amqp:", "amqps:"), "cannot be reached"),
    ],
)
async def test_a_connection_error_has_its_cause_and_no_password(
    change: tuple[str, str], reason: str, rabbitmq_url: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{rabbitmq_url}?heartbeat=7".replace(*change)
    broker = a_rabbit(url, queue)
    with capture_logs() as logs:
        await broker.start()
        await until(lambda: len(logs) >= 2)  # the broker keeps trying
        await broker.close()
    assert reason in logs[0]["error"]
    assert "s3cret" not in str(logs) + caplog.text
    # and the `doctor` command reports the same
    with pytest.raises(ConnectionError) as raised:
        await amqp.describe_broker(url, queue)
    assert reason in str(raised.value)
    assert "s3cret" not in str(raised.value)
    # and a stream there does, too
    scheme, host = public_address(url)
    stream = Stream(name="s", scheme=scheme, host=host, sealed=url.encode(), requests=queue, responses=queue)
    with pytest.raises(ConnectionError) as failed:
        await TransportRegistry(bytes.decode, "c")(stream).listen(AsyncMock(), lambda: None)
    assert reason in str(failed.value)
    assert "s3cret" not in str(failed.value)


@pytest.mark.usefixtures("patient")
async def test_the_doctor_finds_the_queue(rabbitmq_url: str, queue: str) -> None:
    assert "is declared on first use" in await amqp.describe_broker(rabbitmq_url, queue)
    async with started(a_rabbit(rabbitmq_url, queue)) as broker:
        broker.notify("job", 0)
    assert f"queue {queue}: wake-ups 1, consumers 0" in await amqp.describe_broker(rabbitmq_url, queue)


# Closing.


@pytest.mark.usefixtures("patient")
async def test_closing_sends_the_unsent_wake_ups(rabbitmq_url: str, queue: str) -> None:
    # given a broker that was not started
    broker = a_rabbit(rabbitmq_url, queue)
    broker.notify("job", 0)
    await broker.close()
    assert await waiting(rabbitmq_url, queue) == 1


@pytest.mark.parametrize("trouble", ["shut", "block"])
async def test_closing_does_not_wait_for_a_server_that_is_away(trouble: str, wire: TcpProxy, queue: str) -> None:
    broker = a_rabbit(wire.url, queue)
    await broker.start()
    await until(lambda: broker.is_connected)
    await broker.poll(0.1)
    if trouble == "shut":
        await wire.shut()
    else:
        wire.block()
    broker.notify("job", 0)
    began = time.monotonic()
    await broker.close()
    assert time.monotonic() - began < 10


async def test_closing_works_at_every_moment_of_connecting(rabbitmq_url: str, queue: str) -> None:
    for moment in range(60):
        broker = a_rabbit(rabbitmq_url, queue)
        await broker.start()
        await broker.poll(moment / 4000)
        async with asyncio.timeout(WAIT_SECONDS):
            await broker.close()


# In real processes.


async def test_a_worker_is_woken_by_jobs_that_a_server_accepts(
    tmp_path: Path, postgres_url: str, rabbitmq_url: str, queue: str
) -> None:
    environment = clean_environment(
        tmp_path / "data",
        SIGNOFF_DATABASE_URL=postgres_url,
        SIGNOFF_AMQP_URL=rabbitmq_url,
        SIGNOFF_QUEUE_NAME=queue,
    )
    signoff(environment, "migrate")
    port = free_port()

    def measure_waits() -> list[float]:
        with ExitStack() as stack:
            stack.enter_context(served(environment, tmp_path, port, "--no-work"))
            stack.enter_context(worked(environment))
            token = first_token(tmp_path)
            waits = []
            for _ in range(20):
                began = time.monotonic()
                job_id = ask(port, "/api/jobs", token, {"body": {"messages": []}, "target": "echo"})["job_id"]
                job = ask(port, f"/api/jobs/{job_id}?wait=10", token)
                waits.append(time.monotonic() - began)
                assert job["status"] == "success"
                assert verbs(port, token, job_id) == ["submit", "claim", "succeed"]
            assert ask(port, "/health/ready", "") == {"store": True, "broker": True}
            return waits

    waits = await asyncio.to_thread(measure_waits)
    assert sorted(waits)[5] < 0.5  # a worker that only polls takes a second for each


async def test_a_server_works_without_its_broker_and_the_doctor_reports_the_cause(tmp_path: Path) -> None:
    port, closed_port = free_port(), free_port()
    url = f"amqp://user:s3cret@127.0.0.1:{closed_port}/"
    environment = clean_environment(tmp_path / "data", SIGNOFF_AMQP_URL=url)

    def run_a_job() -> None:
        with served(environment, tmp_path, port):
            assert ask(port, "/health/ready", "") == {"store": True, "broker": False}
            token = first_token(tmp_path)
            job_id = ask(port, "/api/jobs", token, {"body": {"messages": []}, "target": "echo"})["job_id"]
            assert ask(port, f"/api/jobs/{job_id}?wait=10", token)["status"] == "success"

    await asyncio.to_thread(run_a_job)
    errors = (tmp_path / "err.txt").read_text()
    assert f"127.0.0.1:{closed_port} cannot be reached" in errors
    assert "s3cret" not in errors
    broker_checks = [
        check for check in await run_checks(Settings(amqp_url=url, data_dir=tmp_path)) if check.name == "broker"
    ]
    assert [
        (check.is_ok, "cannot be reached" in check.detail, "s3cret" in check.detail) for check in broker_checks
    ] == [(False, True, False)]
