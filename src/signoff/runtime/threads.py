"""Threads for code that may hang: a bounded number of them, each for one piece of work with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class TimeLimitExceeded(BaseException):
    """The time of a piece of work is over. No code that catches exceptions should catch it."""


class WorkFailed(Exception):
    """What a piece of work raised, whatever that was."""

    def __init__(self, error: BaseException) -> None:
        says = str(error) if isinstance(error, Exception) else repr(error)
        super().__init__(says or type(error).__name__)


class WorkerThreads:
    """At most `at_once` pieces of work. One that will not stop keeps its place, so no number of them is too much."""

    def __init__(self, at_once: int) -> None:
        self._room = asyncio.Semaphore(at_once)

    async def run(self, work: Callable[[], T], seconds: float) -> T:
        """What `work` gives, in the caller's context. Raises Failed for what it raises, TimeoutError after `seconds`.

        When its time is over, or its caller leaves, it is stopped at the next line of Python that it runs.
        """
        async with asyncio.timeout(seconds):
            await self._room.acquire()
            piece = _WorkItem(work, self._room.release)
            try:
                return await piece.outcome
            finally:
                piece.stop()


class _WorkItem:
    """One piece of work in a thread of its own, which does not hold up the end of the process."""

    def __init__(self, work: Callable[[], Any], ended: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = ended
        self._over = False
        self._lock = threading.Lock()
        self.outcome: asyncio.Future[Any] = self._loop.create_future()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._run, work), daemon=True, name="function")
        try:
            self._thread.start()
        except RuntimeError:  # the system has no more threads
            ended()
            raise

    def stop(self) -> None:
        """Raises Stopped in the thread, unless it has ended. Nothing can stop it inside a call of C."""
        with self._lock:
            if not self._over and self._thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread.ident), ctypes.py_object(TimeLimitExceeded)
                )

    def _run(self, work: Callable[[], Any]) -> None:
        result, failure = None, None
        try:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 -- SystemExit too is an answer, and no end of the process
                failure = error
            with self._lock:
                self._over = True
        except TimeLimitExceeded:  # it came late
            self._over = True
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._tell, result, failure)

    def _tell(self, result: Any, failure: BaseException | None) -> None:
        self._ended()
        if self.outcome.done():
            return
        if failure is None:
            self.outcome.set_result(result)
        else:
            self.outcome.set_exception(WorkFailed(failure))
