"""Tasks: what is repeated, and the distinction of a cancelled task from an error that looks like a cancellation."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()


def was_cancelled(error: BaseException) -> bool:
    """Return True if the current task was cancelled. Some clients raise CancelledError when a connection is lost."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


async def repeat(function: Callable[[], Awaitable[None]], *, seconds: float, failure: str) -> None:
    """Call `function` every `seconds`, until cancelled.

    Log the event `failure` if it raises, as what it needs may be back at the next time.
    """
    while True:
        try:
            await function()
        except Exception as error:  # noqa: BLE001 -- see above
            log.warning(failure, error=repr(error))
        await asyncio.sleep(seconds)
