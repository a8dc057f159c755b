"""Asyncio tasks: tell a cancellation from an error that looks like one, complete work, and repeat work."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")
log = structlog.get_logger()


def was_cancelled(error: BaseException) -> bool:
    """Return True if `error` is the cancellation of the current task.

    Some clients raise CancelledError when a connection is lost; then this is False.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def check_cancelled() -> None:
    """Raise CancelledError if the current task was cancelled and goes on nevertheless.

    `asyncio.wait_for`, which many clients use, loses a cancellation if the call ends at the same moment, before Python
    3.12 (python/cpython#86296).
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling() > 0:
        raise asyncio.CancelledError


async def complete(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end, however often the current task is cancelled meanwhile; raise the cancellation then.

    For work that takes a bounded time and leaves something behind if it is cut off, as when clients of brokers connect.
    Raises what `work` raises.
    """
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # mark as retrieved
    raise cancelled


async def repeat(function: Callable[[], Awaitable[None]], *, seconds: float, failure: str) -> None:
    """Call `function` every `seconds`, until cancelled.

    If it raises, log a warning with the event name `failure`, and go on: the store may be back at the next call.
    """
    while True:
        try:
            await function()
        except Exception as error:  # noqa: BLE001 -- see above
            log.warning(failure, error=repr(error))
        await asyncio.sleep(seconds)
