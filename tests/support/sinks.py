"""Receivers of answers: all at once, or event by event."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from signoff.engine import Sink

Answering = Callable[[Sink], Awaitable[bytes | None]]


class Events:
    """Sink that keeps the events."""

    def __init__(self) -> None:
        self.received = list[bytes]()
        self.begun = asyncio.Event()

    async def send(self, events: Sequence[bytes]) -> None:
        """See `engine.Sink`."""
        self.received += events
        self.begun.set()


async def events_of(answering: Answering) -> list[bytes]:
    """Return the events of an answer that must be a stream."""
    events = Events()
    assert await answering(events) is None
    return events.received


async def body_of(answering: Answering) -> bytes:
    """Return the body of an answer that must be whole."""
    events = Events()
    body = await answering(events)
    assert body is not None
    assert not events.received
    return body


class StepwiseAnswer:
    """Streamed answer in a task of its own, which goes on when its test reads: a slow reader."""

    def __init__(self, answering: Answering) -> None:
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(maxsize=1)
        self._task = asyncio.create_task(self._run(answering))

    async def _run(self, answering: Answering) -> None:
        try:
            assert await answering(self) is None
        except Exception as error:  # noqa: BLE001 -- the reader gets it
            await self._queue.put(error)
        else:
            await self._queue.put(None)

    async def send(self, events: Sequence[bytes]) -> None:
        """See `engine.Sink`."""
        for event in events:
            await self._queue.put(event)

    async def next(self) -> bytes | None:
        """Return the next event; None at the end. Raises the error of the answer."""
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def rest(self) -> list[bytes]:
        """Return all events that follow."""
        events = list[bytes]()
        while (event := await self.next()) is not None:
            events.append(event)
        return events

    async def leave(self) -> None:
        """Cancel the answer, and wait for the end of its task."""
        self._task.cancel()
        await asyncio.wait([self._task])
