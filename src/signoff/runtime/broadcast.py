"""Answer with several readers. The call behind it is cancelled when its last reader leaves."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from signoff.engine import Sink
from signoff.errors import SignoffError


class Broadcast:
    """Answer of one call, which is also the sink of its events. Its creator sets `task`, which runs `fill`."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self._events = list[bytes]()
        self._body: bytes | None = None
        self._error: SignoffError | None = None
        self._is_ended = False
        self._readers = 0
        self._changed = asyncio.Event()

    async def fill(self, serve: Callable[[Sink], Awaitable[bytes | None]], interrupted: SignoffError) -> None:
        """Wait for the answer of `serve`. Readers get `interrupted` if it ends in anything but a SignoffError."""
        self._error = interrupted
        try:
            self._body = await serve(self)
            self._error = None
        except SignoffError as error:
            self._error = error.copy()
        finally:
            self._is_ended = True
            self._wake_readers()

    def fail(self, error: SignoffError) -> None:
        """End the broadcast without an answer; readers get `error`."""
        self._error, self._is_ended = error, True
        self._wake_readers()

    async def send(self, events: Sequence[bytes]) -> None:
        """Take the next events of the answer."""
        self._events += events
        self._wake_readers()

    async def read(self, sink: Sink) -> bytes | None:
        """Return the whole answer; or send every event from the first on to `sink`, as it arrives, and return None.

        Raises the error of the call.
        """
        self._readers += 1
        index = 0
        try:
            while index < len(self._events) or not self._is_ended:
                if index == len(self._events):
                    await self._changed.wait()
                    continue
                events, index = self._events[index:], len(self._events)
                await sink.send(events)
        finally:
            self._readers -= 1
            if self._readers == 0 and not self._is_ended and self.task is not None:
                self.task.cancel()
        if self._error is not None:
            raise self._error.copy()
        return self._body

    @property
    def is_empty(self) -> bool:
        """True if no part of an answer has come, as when the answer is held."""
        return self._body is None and not self._events

    @property
    def is_abandoned(self) -> bool:
        """True once the last reader has left and the call is being cancelled."""
        return self.task is not None and bool(self.task.cancelling())

    def _wake_readers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
