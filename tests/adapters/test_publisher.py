"""The connection that publishes responses: one at a time, and each lost one is stopped."""

from __future__ import annotations

import asyncio

import pytest

from signoff.transports.liveness import LivenessWatch
from signoff.transports.publisher import PublisherConnection

pytestmark = pytest.mark.anyio


class Connections:
    """A publisher connection, and the brokers that it has created, in order."""

    def __init__(self) -> None:
        self.created: list[FakeBroker] = []
        self.publisher = PublisherConnection(self._make, FakeBroker.connect)

    def _make(self, watch: LivenessWatch) -> FakeBroker:
        self.created.append(FakeBroker(watch))
        return self.created[-1]


class FakeBroker:
    """A broker that takes a moment to connect and to stop, and reports itself as lost when it has stopped."""

    refuses = False

    def __init__(self, watch: LivenessWatch) -> None:
        self.watch = watch
        self.state = "new"

    async def connect(self) -> None:
        await asyncio.sleep(0)
        if self.refuses:
            raise ConnectionRefusedError
        self.state = "connected"

    async def stop(self) -> None:
        await asyncio.sleep(0)
        self.state = "stopped"
        self.watch.fail(ConnectionError("closed"))


async def test_concurrent_callers_share_one_connection() -> None:
    connections = Connections()
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(connections.publisher.get()) for _ in range(10)]
    assert {call.result() for call in calls} == {*connections.created}
    assert [broker.state for broker in connections.created] == ["connected"]


@pytest.mark.parametrize("by", ["its watch", "whoever used it"])
async def test_a_lost_connection_is_stopped_before_it_is_replaced(by: str) -> None:
    connections = Connections()
    first = await connections.publisher.get()
    if by == "its watch":
        first.watch.fail(ConnectionError("cut"))
    else:
        connections.publisher.mark_lost(first)
    second = await connections.publisher.get()
    assert [broker.state for broker in connections.created] == ["stopped", "connected"]
    # a late report about the first connection does not affect the second
    connections.publisher.mark_lost(first)
    first.watch.fail(ConnectionError("cut"))
    assert await connections.publisher.get() is second


async def test_a_connection_that_cannot_connect_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections()
    with monkeypatch.context() as patched:
        patched.setattr(FakeBroker, "refuses", True)
        with pytest.raises(ConnectionRefusedError):
            await connections.publisher.get()
    await connections.publisher.get()
    assert [broker.state for broker in connections.created] == ["stopped", "connected"]


async def test_a_closed_publisher_opens_no_connection() -> None:
    connections = Connections()
    async with asyncio.TaskGroup() as group:
        group.create_task(connections.publisher.get())
        group.create_task(connections.publisher.close())
    with pytest.raises(ConnectionError):
        await connections.publisher.get()
    assert [broker.state for broker in connections.created] in ([], ["stopped"])
