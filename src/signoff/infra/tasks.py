"""Whether a task was cancelled, or met an error that only looks like it."""

from __future__ import annotations

import asyncio


def was_cancelled(error: BaseException) -> bool:
    """Whether it was this task that was cancelled. Some clients raise the same error from a line that was cut."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
