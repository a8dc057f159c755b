"""Background tasks, which outlive their callers: failures are logged, and shutdown waits for them."""

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")
RELEASE_SECONDS = 5.0
log = structlog.get_logger()


class Background:
    """Background tasks of this process."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[Any]]()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start `coroutine` as a task. A failure is logged."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    async def shielded(self, coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
        """Return the result of `coroutine`, which is not cancelled with the caller: it gets `seconds` more to end."""
        task = self.spawn(coroutine)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await drain({task}, seconds)
            raise

    async def finish(self, seconds: float) -> None:
        """Wait up to `seconds` for the tasks that still run, then cancel the rest."""
        await drain(self._tasks, seconds)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(
                "background_task_failed", task=getattr(task.get_coro(), "__qualname__", task.get_name()), exc_info=error
            )


async def drain(tasks: Collection[asyncio.Task[Any]], seconds: float) -> None:
    """Wait up to `seconds` for `tasks`, then cancel the rest and give them RELEASE_SECONDS to clean up."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=RELEASE_SECONDS)
