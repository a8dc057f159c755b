"""Work that outlives whoever started it: kept, logged when it fails, waited for at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")
RELEASE_SECONDS = 5.0
log = structlog.get_logger()


class Background:
    """The tasks of this process that nobody waits for."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[Any]]()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts `work`; a failure is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def shielded(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """The result of `work`, which is not cut off with whoever waits for it: it has `seconds` more to end."""
        task = self.spawn(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await drain({task}, seconds)
            raise

    async def finish(self, seconds: float) -> None:
        """Waits for what still runs, at most `seconds`, and cancels the rest."""
        await drain(self._tasks, seconds)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", error=repr(error), exc_info=error)


async def drain(tasks: Collection[asyncio.Task[Any]], seconds: float) -> None:
    """Waits for `tasks` at most `seconds`; cancels the rest, and gives them a while to give back what they hold."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=RELEASE_SECONDS)
