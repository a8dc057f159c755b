"""Distinction between a cancelled task and an error that looks like a cancellation."""

import asyncio


def was_cancelled(error: BaseException) -> bool:
    """Return True if the current task was cancelled. Some clients raise CancelledError when a connection is lost."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
