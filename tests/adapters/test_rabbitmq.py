"""Bells through RabbitMQ: shared by processes, lost by none, whatever happens to the server, its queue and the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import DeliveryMode
from pamqp import commands, frame
from structlog.testing import capture_logs

from fakes.tcp_proxy import TcpProxy
from signoff.brokers import amqp
from signoff.commands.doctor import checks
from signoff.settings import Settings
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
async def queue(rabbitmq_url: str, prefix: str) -> AsyncIterator[str]:
    """Yield a name for a queue, which is gone afterwards."""
    yield prefix
    async with channel(rabbitmq_url) as other:
        await other.queue_delete(prefix)


@pytest.fixture
async def wire(rabbitmq_url: str) -> AsyncIterator[TcpProxy]:
    """Yield a wire to the server that can be cut."""
    async with TcpProxy(rabbitmq_url) as proxy:
        yield proxy


# Bells between processes.


async def test_each_bell_is_heard_by_one_of_two_that_wait(rabbitmq_url: str, queue: str) -> None:
    async with (
        started(a_rabbit(rabbitmq_url, queue)) as bell,
        started(a_rabbit(rabbitmq_url, queue), listening=True) as one,
        started(a_rabbit(rabbitmq_url, queue), listening=True) as other,
    ):
        for number in range(10):
            waits = [asyncio.ensure_future(ear.poll(WAIT_SECONDS)) for ear in (one, other)]
            await asyncio.sleep(0)
            bell.notify(f"job-{number}", 0)
            heard, deaf = await asyncio.wait(waits, timeout=WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in heard] == [True]
            deaf.pop().cancel()
        async with asyncio.TaskGroup() as group:
            more = [group.create_task(ear.poll(QUIET_SECONDS)) for ear in (one, other)]
        assert [task.result() for task in more] == [False, False]
    assert await waiting(rabbitmq_url, queue) == 0


async def test_many_rings_at_once_wake_everybody_who_waits(rabbitmq_url: str, queue: str) -> None:
    async with (
        started(a_rabbit(rabbitmq_url, queue)) as bell,
        started(a_rabbit(rabbitmq_url, queue), listening=True) as one,
        started(a_rabbit(rabbitmq_url, queue), listening=True) as other,
    ):
        waits = [asyncio.ensure_future(ear.poll(WAIT_SECONDS)) for ear in (one, other)]
        async with channel(rabbitmq_url) as look:
            await until_heard_by(2, look, queue)
        for number in range(40):
            bell.notify(f"job-{number}", 0)
        assert [await wait for wait in waits] == [True, True]


async def test_ten_thousand_rings_are_heard_in_a_moment(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as bell:
        for number in range(10_000):
            bell.notify(f"01890a5d-ac96-774b-bcce-{number:012d}", number % 10)
    began = time.monotonic()
    async with started(a_rabbit(rabbitmq_url, queue)) as ear:
        assert 1 <= await drained(ear) <= 50
    assert time.monotonic() - began < 20
    assert await waiting(rabbitmq_url, queue) == 0


async def test_a_bell_waits_for_somebody_to_listen(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as bell:
        bell.notify("one", 0)
        bell.notify("one", 0)
        bell.notify("two", 0)
    # then it is safe, and names what it rang for
    async with channel(rabbitmq_url) as other:
        messages = [await (await other.get_queue(queue)).get(timeout=WAIT_SECONDS) for _ in range(2)]
        assert {message.body for message in messages} == {b"one", b"two"}
        assert {message.delivery_mode for message in messages} == {DeliveryMode.PERSISTENT}
        await messages[-1].nack(multiple=True)
    async with started(a_rabbit(rabbitmq_url, queue)) as ear:
        assert await ear.poll(WAIT_SECONDS)


async def test_the_queue_outlasts_the_server_and_has_a_bound(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)), channel(rabbitmq_url) as other:
        # an equal declaration is taken, any other one is not
        await other.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum", "x-max-length": 10_000})
        with pytest.raises(aio_pika.exceptions.ChannelPreconditionFailed):
            await other.declare_queue(queue, durable=True)


async def test_a_queue_that_is_there_is_used_as_it_is(rabbitmq_url: str, queue: str) -> None:
    async with channel(rabbitmq_url) as other:
        await other.declare_queue(queue, auto_delete=True, arguments={"x-max-priority": 5, "x-max-length": 7})
        async with started(a_rabbit(rabbitmq_url, queue)) as broker:
            broker.notify("job", 9)
            assert await broker.poll(WAIT_SECONDS)
            assert await drained(broker) == 0


async def test_what_somebody_else_put_into_the_queue_stays_there(rabbitmq_url: str, queue: str) -> None:
    with capture_logs() as logs:
        async with channel(rabbitmq_url) as other, started(a_rabbit(rabbitmq_url, queue)) as broker:
            await other.default_exchange.publish(aio_pika.Message(b'{"job_id": 1}'), queue)
            assert not await broker.poll(1)
            await until(lambda: logs)
    assert "message of another program" in logs[-1]["error"]
    assert await waiting(rabbitmq_url, queue) == 1


async def test_an_odd_id_does_not_stop_the_bells(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as broker:
        for job_id in ("\udcff", "", "x" * 300_000):
            broker.notify(job_id, 0)
            assert await broker.poll(WAIT_SECONDS)


# Who gives a bell back.


async def test_what_nobody_hears_rings_for_another(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as bell, started(a_rabbit(rabbitmq_url, queue)) as busy:
        # given a bell that comes to somebody who listened a moment ago, and is busy now
        for _ in range(2):
            await busy.poll(0.05)
        bell.notify("job", 0)
        # then another one hears it soon, and the first one does not any more
        async with started(a_rabbit(rabbitmq_url, queue)) as other:
            assert await other.poll(WAIT_SECONDS)
            assert await other.poll(0) is False
            assert await busy.poll(QUIET_SECONDS) is False


async def test_what_was_heard_and_not_claimed_rings_for_another(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as busy:
        busy.notify("job", 0)
        assert await busy.poll(WAIT_SECONDS)
        async with started(a_rabbit(rabbitmq_url, queue)) as other:
            assert await other.poll(WAIT_SECONDS)


async def test_what_a_dying_worker_heard_rings_for_another(wire: TcpProxy, rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as other, started(a_rabbit(wire.url, queue)) as dying:
        other.notify("job", 0)
        assert await dying.poll(WAIT_SECONDS)
        await wire.shut()
        assert await other.poll(WAIT_SECONDS)


async def test_what_was_claimed_rings_no_more(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as broker:
        broker.notify("job", 0)
        assert await broker.poll(WAIT_SECONDS)
        # when it listens again, there is no more to claim
        assert await broker.poll(QUIET_SECONDS) is False
    assert await waiting(rabbitmq_url, queue) == 0


# What can go wrong.


async def test_what_was_acknowledged_is_not_acknowledged_again_when_news_ring(rabbitmq_url: str, queue: str) -> None:
    with capture_logs() as logs:
        async with started(a_rabbit(rabbitmq_url, queue), listening=True) as broker:
            # given a bell that was heard and claimed
            broker.notify("job", 5)
            assert await broker.poll(WAIT_SECONDS)
            await broker.poll(QUIET_SECONDS)
            # when RabbitMQ halts whoever publishes, and news ring instead
            broker._publish_connection.is_up = False
            for _ in range(3):
                broker.wake_local()
                assert await broker.poll(WAIT_SECONDS)
                await broker.poll(QUIET_SECONDS)
    # then the line on which bells come stays
    assert [amqp for amqp in logs if amqp.get("connection") == "signoff consumer"] == []


async def test_bells_get_through_once_the_server_is_back(wire: TcpProxy, rabbitmq_url: str, queue: str) -> None:
    # given a server that is away
    await wire.shut()
    broker = a_rabbit(wire.url, queue)
    with capture_logs() as logs:
        await broker.start()
        await until(lambda: logs)
    assert "cannot be reached" in logs[0]["error"]
    assert not broker.is_connected
    # when it rings: then it rings in this process
    broker.notify("job", 0)
    assert await broker.poll(WAIT_SECONDS)
    # and everywhere when the server is back
    await wire.open()
    async with started(a_rabbit(rabbitmq_url, queue)) as other:
        assert await other.poll(WAIT_SECONDS)
    await until(lambda: broker.is_connected)
    await broker.close()


async def test_a_line_that_is_cut_is_made_again(wire: TcpProxy, queue: str) -> None:
    async with started(a_rabbit(wire.url, queue), listening=True) as broker:
        for number in range(3):
            wire.cut()
            await until(lambda: not broker.is_connected)
            await until(lambda: broker.is_connected)
            await drained(broker)
            broker.notify(f"job-{number}", 0)
            assert await broker.poll(WAIT_SECONDS)


async def test_a_line_that_an_operator_closes_is_made_again(wire: TcpProxy, queue: str) -> None:
    async with started(a_rabbit(wire.url, queue), listening=True) as broker:
        with capture_logs() as logs:
            wire.tell_clients(frame.marshal(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0), 0))
            await until(lambda: not broker.is_connected)
        assert logs
        await until(lambda: broker.is_connected)
        await drained(broker)
        broker.notify("job", 0)
        assert await broker.poll(WAIT_SECONDS)


async def test_a_line_on_which_nothing_passes_is_noticed_by_whoever_rings(
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


async def test_a_line_on_which_nothing_passes_is_noticed_by_whoever_listens(wire: TcpProxy, queue: str) -> None:
    async with started(a_rabbit(f"{wire.url}?heartbeat=1", queue), listening=True) as broker:
        wire.block()
        await until(lambda: not broker.is_connected)
        wire.unblock()
        await until(lambda: broker.is_connected)


async def test_whoever_waits_hears_again_when_the_queue_was_deleted(rabbitmq_url: str, queue: str) -> None:
    async with (
        started(a_rabbit(rabbitmq_url, queue)) as bell,
        started(a_rabbit(rabbitmq_url, queue), listening=True) as ear,
        channel(rabbitmq_url) as other,
    ):
        wait = asyncio.ensure_future(ear.poll(WAIT_SECONDS))
        await until_heard_by(1, other, queue)
        with capture_logs() as logs:
            await other.queue_delete(queue)
            await until(lambda: logs)
        assert "was deleted" in logs[0]["error"]
        await until(lambda: ear.is_connected)
        bell.notify("job", 0)
        assert await wait


async def test_a_ring_makes_the_queue_again(rabbitmq_url: str, queue: str) -> None:
    async with started(a_rabbit(rabbitmq_url, queue)) as broker, channel(rabbitmq_url) as other:
        await other.queue_delete(queue)
        broker.notify("job", 0)
        assert await broker.poll(WAIT_SECONDS)
        await drained(broker)
    assert await waiting(rabbitmq_url, queue) == 0


async def test_a_full_queue_that_refuses_more_costs_bells_and_no_line(rabbitmq_url: str, queue: str) -> None:
    async with channel(rabbitmq_url) as other:
        await other.declare_queue(queue, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        with capture_logs() as logs:
            async with started(a_rabbit(rabbitmq_url, queue)) as broker:
                for number in range(50):
                    broker.notify(f"job-{number}", 0)
                await until(lambda: logs)
                assert broker.is_connected
        [told] = logs
        assert "dropped" in told["event"]
    assert await waiting(rabbitmq_url, queue) == 1


async def test_too_many_bells_drop_the_oldest_and_say_so_once(wire: TcpProxy, rabbitmq_url: str, queue: str) -> None:
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
    # given a server that takes calls and hangs up
    broker = a_rabbit(wire.url.replace("guest@", "wrong@"), queue)
    await broker.start()
    await until(lambda: wire.calls == 1)
    began = time.monotonic()
    await until(lambda: wire.calls >= 4)
    # then the waits grow: 0.1, 0.2, 0.4 s
    assert time.monotonic() - began > 0.6
    await broker.close()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("guest:guest@", "guest:s3cret@"), "refuses the login 'guest': check the user and the password"),
        (("guest:guest@", "Zoë:s3cret@"), "refuses the login 'Zoë'"),
        (("/?", "/elsewhere?"), "refuses the virtual host 'elsewhere': check that 'guest' may use it"),
        (("amqp:", "amqps:"), "cannot be reached"),
    ],
)
async def test_what_is_wrong_is_told_without_the_password(
    change: tuple[str, str], told: str, rabbitmq_url: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{rabbitmq_url}?heartbeat=7".replace(*change)
    broker = a_rabbit(url, queue)
    with capture_logs() as logs:
        await broker.start()
        await until(lambda: len(logs) >= 2)  # and it goes on trying
        await broker.close()
    assert told in logs[0]["error"]
    assert "s3cret" not in str(logs) + caplog.text
    # and the doctor says the same
    with pytest.raises(ConnectionError) as caught:
        await amqp.describe_broker(url, queue)
    assert told in str(caught.value)
    assert "s3cret" not in str(caught.value)


async def test_the_doctor_finds_the_queue(rabbitmq_url: str, queue: str) -> None:
    assert "is declared on first use" in await amqp.describe_broker(rabbitmq_url, queue)
    async with started(a_rabbit(rabbitmq_url, queue)) as broker:
        broker.notify("job", 0)
    assert f"queue {queue}: wake-ups 1, consumers 0" in await amqp.describe_broker(rabbitmq_url, queue)


# The end.


async def test_closing_rings_what_was_not_rung_yet(rabbitmq_url: str, queue: str) -> None:
    # given a broker that nobody started
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


async def test_closing_ends_in_every_moment_of_connecting(rabbitmq_url: str, queue: str) -> None:
    for moment in range(60):
        broker = a_rabbit(rabbitmq_url, queue)
        await broker.start()
        await broker.poll(moment / 4000)
        async with asyncio.timeout(WAIT_SECONDS):
            await broker.close()


# In real processes.


async def test_a_worker_hears_what_a_server_accepts(
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

    def play() -> list[float]:
        with ExitStack() as stack:
            stack.enter_context(served(environment, tmp_path, port, "--no-work"))
            stack.enter_context(worked(environment))
            token = first_token(tmp_path)
            waits = []
            for _ in range(20):
                began = time.monotonic()
                job_id = ask(port, "/api/jobs", token, {"body": {"messages": []}, "target": "echo"})["job_id"]
                done = ask(port, f"/api/jobs/{job_id}?wait=10", token)
                waits.append(time.monotonic() - began)
                assert done["status"] == "success"
                assert verbs(port, token, job_id) == ["submit", "claim", "succeed"]
            assert ask(port, "/health/ready", "") == {"store": True, "broker": True}
            return waits

    waits = await asyncio.to_thread(play)
    assert sorted(waits)[10] < 0.5


async def test_without_its_broker_a_server_is_ready_and_works_and_the_doctor_says_why(tmp_path: Path) -> None:
    port, nobody = free_port(), free_port()
    url = f"amqp://user:s3cret@127.0.0.1:{nobody}/"
    environment = clean_environment(tmp_path / "data", SIGNOFF_AMQP_URL=url)

    def play() -> None:
        with served(environment, tmp_path, port):
            assert ask(port, "/health/ready", "") == {"store": True, "broker": False}
            token = first_token(tmp_path)
            job_id = ask(port, "/api/jobs", token, {"body": {"messages": []}, "target": "echo"})["job_id"]
            assert ask(port, f"/api/jobs/{job_id}?wait=10", token)["status"] == "success"

    await asyncio.to_thread(play)
    complaints = (tmp_path / "err.txt").read_text()
    assert f"127.0.0.1:{nobody} cannot be reached" in complaints
    assert "s3cret" not in complaints
    found = [check for check in await checks(Settings(amqp_url=url, data_dir=tmp_path)) if check.name == "broker"]
    assert [(check.is_ok, "cannot be reached" in check.detail, "s3cret" in check.detail) for check in found] == [
        (False, True, False)
    ]
