"""Sizes of the runs of pipelines that this process performs, which have a maximum."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from signoff.core.job import Job
from signoff.errors import RunTooLarge


class RunSize:
    """The bytes of all calls of one run, those of the pipelines that it calls included."""

    def __init__(self, size_bytes: int, max_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._max_bytes = max_bytes

    def add(self, size_bytes: int) -> None:
        """Count the bytes of a request or an answer. Raises RunTooLarge, also for all that follow."""
        self._size_bytes += size_bytes
        if self._size_bytes > self._max_bytes:
            raise RunTooLarge(
                f"The calls of the run must have at most {self._max_bytes} bytes together "
                "(setting `max_run_bytes`); send shorter arguments, or make fewer calls."
            )


class RunSizes:
    """The sizes of runs by job id. A run that is a step of another one shares the size of that one.

    Each process counts what it adds to a run. So the steps that several processes perform at the same time for one run
    may exceed the maximum together, by at most the maximum for each process.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._sizes = dict[str, RunSize]()

    @asynccontextmanager
    async def counting(self, run: Job, load: Callable[[str], Awaitable[int]]) -> AsyncGenerator[RunSize]:
        """Yield the size of `run`; `load` returns its bytes so far, unless this process performs its parent run."""
        size = self._sizes.get(run.parent_id or "") or RunSize(await load(run.id), self._max_bytes)
        self._sizes[run.id] = size
        try:
            yield size
        finally:
            if self._sizes.get(run.id) is size:
                del self._sizes[run.id]
