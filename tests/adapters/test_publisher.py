"""The connection that answers go out on: one at a time, and none is left behind."""

from __future__ import annotations

import asyncio

import pytest

from signoff.transports.liveness import LivenessWatch
from signoff.transports.publisher import PublisherConnection

pytestmark = pytest.mark.anyio


class Lines:
    """The brokers that were made, in turn."""

    def __init__(self) -> None:
        self.made: list[Line] = []
        self.out = PublisherConnection(self._make, Line.connect)

    def _make(self, watch: LivenessWatch) -> Line:
        self.made.append(Line(watch))
        return self.made[-1]


class Line:
    """A broker that takes a moment to connect and to stop, and says when it has stopped that it is lost."""

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


async def test_all_who_ask_at_once_have_one_connection() -> None:
    lines = Lines()
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(lines.out.get()) for _ in range(10)]
    assert {task.result() for task in asking} == {*lines.made}
    assert [line.state for line in lines.made] == ["connected"]


@pytest.mark.parametrize("by", ["its watch", "whoever used it"])
async def test_one_that_is_lost_is_stopped_before_there_is_another(by: str) -> None:
    lines = Lines()
    first = await lines.out.get()
    if by == "its watch":
        first.watch.fail(ConnectionError("cut"))
    else:
        lines.out.mark_lost(first)
    second = await lines.out.get()
    assert [line.state for line in lines.made] == ["stopped", "connected"]
    # what is said of the first one late is not said of the second
    lines.out.mark_lost(first)
    first.watch.fail(ConnectionError("cut"))
    assert await lines.out.get() is second


async def test_one_that_does_not_connect_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines()
    with monkeypatch.context() as patched:
        patched.setattr(Line, "refuses", True)
        with pytest.raises(ConnectionRefusedError):
            await lines.out.get()
    await lines.out.get()
    assert [line.state for line in lines.made] == ["stopped", "connected"]


async def test_after_its_end_there_is_no_other() -> None:
    lines = Lines()
    async with asyncio.TaskGroup() as group:
        group.create_task(lines.out.get())
        group.create_task(lines.out.close())
    with pytest.raises(ConnectionError):
        await lines.out.get()
    assert [line.state for line in lines.made] in ([], ["stopped"])
