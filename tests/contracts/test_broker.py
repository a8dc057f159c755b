"""Contract tests of `broker.Broker`, run against every broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from signoff.broker import Broker
from signoff.brokers.local import LocalBroker
from support.brokers import WAIT_SECONDS, a_rabbit, channel, drained, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["local", "rabbitmq"])
async def fresh(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[Broker]:
    """Yield a broker that has not been started."""
    if request.param == "local":
        yield LocalBroker()
        return
    url = request.getfixturevalue("rabbitmq_url")
    broker = a_rabbit(url, prefix)
    yield broker
    await broker.close()
    async with channel(url) as other:
        await other.queue_delete(prefix)


@pytest.fixture
async def broker(fresh: Broker) -> Broker:
    """Return a started broker whose wake-ups arrive."""
    await fresh.start()
    await until(lambda: fresh.is_connected)
    assert not await fresh.poll(0)
    await until(lambda: fresh.is_connected)
    return fresh


async def test_a_wake_up_arrives_before_and_during_a_poll(broker: Broker) -> None:
    broker.notify("early", 0)
    assert await broker.poll(WAIT_SECONDS)
    async with asyncio.TaskGroup() as group:
        poll = group.create_task(broker.poll(WAIT_SECONDS))
        await asyncio.sleep(0)
        broker.notify("late", 0)
    assert poll.result()


async def test_a_wake_up_is_received_once(broker: Broker) -> None:
    for number in range(5):
        broker.notify(f"job-{number}", number)
        assert await broker.poll(WAIT_SECONDS)
        assert await drained(broker) == 0


async def test_a_poll_without_a_wake_up_times_out(broker: Broker) -> None:
    began = time.monotonic()
    assert not await broker.poll(0.3)
    assert 0.25 <= time.monotonic() - began < WAIT_SECONDS


async def test_many_notifications_are_merged_into_few_wake_ups(broker: Broker) -> None:
    for number in range(1000):
        broker.notify(f"job-{number}", 0)
    assert 1 <= await drained(broker) <= 20


async def test_a_cancelled_poll_does_not_lose_the_next_wake_up(broker: Broker) -> None:
    # given a poll that is cancelled while it waits
    poll = asyncio.ensure_future(broker.poll(WAIT_SECONDS))
    await asyncio.sleep(0)
    poll.cancel()
    await asyncio.wait([poll], timeout=WAIT_SECONDS)
    # when a wake-up is sent, then the next poll receives it
    broker.notify("job", 0)
    assert await broker.poll(WAIT_SECONDS)


async def test_notify_never_blocks_and_never_fails(fresh: Broker) -> None:
    # before the start, with unusual ids, far more often than a consumer can receive, and after the end
    fresh.notify("too early", 0)
    await fresh.start()
    began = time.monotonic()
    for job_id in ("", "two\nlines", "\udcff", "x" * 100_000, *(f"job-{number}" for number in range(20_000))):
        fresh.notify(job_id, -1)
        fresh.wake_local()
    assert time.monotonic() - began < WAIT_SECONDS
    assert await fresh.poll(WAIT_SECONDS)
    await fresh.close()
    fresh.notify("too late", 0)
    fresh.wake_local()


async def test_a_broker_can_be_closed_twice_and_without_a_start(fresh: Broker) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        await fresh.close()
        await fresh.start()
        await fresh.close()
