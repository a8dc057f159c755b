"""One asking of a model: the chunks that came of it, and when."""

from __future__ import annotations

import asyncio

from signoff.core.answer import Chunk


class Attempt:
    """What came of the last time that a model was asked. Times are the event loop's, in seconds."""

    def __init__(self) -> None:
        self.chunks = list[Chunk]()
        self.started_at: float | None = None
        self.first_chunk_at: float | None = None
        self.ended_at: float | None = None

    def begin(self) -> None:
        """The model is asked now; what came of an asking before is forgotten."""
        self.chunks.clear()
        self.started_at, self.first_chunk_at, self.ended_at = _now(), None, None

    def add_chunk(self, chunk: Chunk) -> None:
        """What has come."""
        if self.first_chunk_at is None:
            self.first_chunk_at = _now()
        self.chunks.append(chunk)

    def end(self) -> None:
        """Nothing more will come; a second call changes nothing."""
        self.ended_at = self.ended_at or _now()


def _now() -> float:
    return asyncio.get_running_loop().time()
