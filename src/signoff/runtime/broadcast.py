"""An answer that several callers read as it comes; the asking behind it is stopped when its last reader leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from signoff.core.answer import Chunk
from signoff.errors import SignoffError


class Broadcast:
    """The chunks of one asking. Its `task` fills it; whoever begins it sets that."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self._chunks = list[Chunk]()
        self._error: SignoffError | None = None
        self._over = False
        self._readers = 0
        self._more = asyncio.Event()

    async def fill(self, chunks: AsyncIterator[Chunk], cut_off: SignoffError) -> None:
        """Takes in all chunks. Readers get `cut_off` where it does not come to the end."""
        self._error = cut_off
        try:
            async for chunk in chunks:
                self._chunks.append(chunk)
                self._wake_readers()
            self._error = None
        except SignoffError as error:
            self._error = error
        finally:
            self._over = True
            self._wake_readers()

    def fail(self, error: SignoffError) -> None:
        """There will be no chunks."""
        self._error, self._over = error, True
        self._wake_readers()

    async def read(self) -> AsyncGenerator[Chunk]:
        """Every chunk from the first one on, as it comes. Raises what the asking raised."""
        self._readers += 1
        seen = 0
        try:
            while seen < len(self._chunks) or not self._over:
                if seen == len(self._chunks):
                    await self._more.wait()
                    continue
                yield self._chunks[seen]
                seen += 1
        finally:
            self._readers -= 1
            if self._readers == 0 and not self._over and self.task is not None:
                self.task.cancel()
        if self._error is not None:
            raise self._error

    @property
    def is_abandoned(self) -> bool:
        """Whether its last reader has stopped it."""
        return self.task is not None and bool(self.task.cancelling())

    def _wake_readers(self) -> None:
        self._more.set()
        self._more = asyncio.Event()
