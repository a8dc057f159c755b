"""Chunks and times of one attempt at a model."""

import asyncio

from signoff.core.answer import Chunk


class Attempt:
    """Result so far of the latest attempt at a model. Times are the event loop's, in seconds."""

    def __init__(self) -> None:
        self.chunks = list[Chunk]()
        self.started_at: float | None = None
        self.first_chunk_at: float | None = None
        self.ended_at: float | None = None

    def begin(self) -> None:
        """Record the start of an attempt and discard the result of the one before."""
        self.chunks.clear()
        self.started_at, self.first_chunk_at, self.ended_at = _now(), None, None

    def add_chunk(self, chunk: Chunk) -> None:
        """Record a chunk and, if it is the first, its time."""
        if self.first_chunk_at is None:
            self.first_chunk_at = _now()
        self.chunks.append(chunk)

    def end(self) -> None:
        """Record the end of the attempt. Later calls do nothing."""
        self.ended_at = self.ended_at or _now()


def _now() -> float:
    return asyncio.get_running_loop().time()
