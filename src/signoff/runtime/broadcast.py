"""Stream of chunks with several readers. The call behind it is cancelled when its last reader leaves."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from signoff.core.answer import Chunk
from signoff.errors import SignoffError


class Broadcast:
    """Chunks of one call. Its creator sets `task`, which runs `fill`."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self._chunks = list[Chunk]()
        self._error: SignoffError | None = None
        self._is_ended = False
        self._readers = 0
        self._changed = asyncio.Event()

    async def fill(self, chunks: AsyncIterator[Chunk], cut_off: SignoffError) -> None:
        """Append all chunks. Readers get `cut_off` if the iteration ends in anything but a SignoffError."""
        self._error = cut_off
        try:
            async for chunk in chunks:
                self._chunks.append(chunk)
                self._wake_readers()
            self._error = None
        except SignoffError as error:
            self._error = error
        finally:
            self._is_ended = True
            self._wake_readers()

    def fail(self, error: SignoffError) -> None:
        """End the broadcast without further chunks; readers get `error`."""
        self._error, self._is_ended = error, True
        self._wake_readers()

    async def read(self) -> AsyncGenerator[Chunk]:
        """Yield every chunk from the first on, as it arrives. Raises the error of the call."""
        self._readers += 1
        index = 0
        try:
            while index < len(self._chunks) or not self._is_ended:
                if index == len(self._chunks):
                    await self._changed.wait()
                    continue
                yield self._chunks[index]
                index += 1
        finally:
            self._readers -= 1
            if self._readers == 0 and not self._is_ended and self.task is not None:
                self.task.cancel()
        if self._error is not None:
            raise self._error

    @property
    def is_abandoned(self) -> bool:
        """True once the last reader has left and the call is being cancelled."""
        return self.task is not None and bool(self.task.cancelling())

    def _wake_readers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
