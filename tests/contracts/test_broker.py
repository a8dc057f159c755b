"""What every broker keeps: the promise in `broker.py`."""

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
    """Yield a broker that nobody has started."""
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
    """Return a broker whose bells get through."""
    await fresh.start()
    await until(lambda: fresh.is_connected)
    assert not await fresh.poll(0)
    await until(lambda: fresh.is_connected)
    return fresh


async def test_a_bell_is_heard_whether_somebody_waits_already_or_not_yet(broker: Broker) -> None:
    broker.notify("early", 0)
    assert await broker.poll(WAIT_SECONDS)
    async with asyncio.TaskGroup() as group:
        wait = group.create_task(broker.poll(WAIT_SECONDS))
        await asyncio.sleep(0)
        broker.notify("late", 0)
    assert wait.result()


async def test_a_bell_is_heard_once(broker: Broker) -> None:
    for number in range(5):
        broker.notify(f"job-{number}", number)
        assert await broker.poll(WAIT_SECONDS)
        assert await drained(broker) == 0


async def test_a_wait_ends_in_time_when_nobody_rings(broker: Broker) -> None:
    began = time.monotonic()
    assert not await broker.poll(0.3)
    assert 0.25 <= time.monotonic() - began < WAIT_SECONDS


async def test_a_thousand_rings_are_few_bells(broker: Broker) -> None:
    for number in range(1000):
        broker.notify(f"job-{number}", 0)
    assert 1 <= await drained(broker) <= 20


async def test_a_bell_outlasts_a_wait_that_was_given_up(broker: Broker) -> None:
    # given somebody who waits, and is stopped
    wait = asyncio.ensure_future(broker.poll(WAIT_SECONDS))
    await asyncio.sleep(0)
    wait.cancel()
    await asyncio.wait([wait], timeout=WAIT_SECONDS)
    # when it rings: then the next one hears it
    broker.notify("job", 0)
    assert await broker.poll(WAIT_SECONDS)


async def test_ringing_never_waits_and_never_fails(fresh: Broker) -> None:
    # before the start, with odd ids, far more often than anybody can hear, and after the end
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


async def test_it_can_be_closed_twice_and_without_a_start(fresh: Broker) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        await fresh.close()
        await fresh.start()
        await fresh.close()
