"""Worker threads for code that may hang: a bounded number, each with one function call and a time limit."""

import asyncio
import contextlib
import contextvars
import ctypes
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from signoff.errors import Overloaded

T = TypeVar("T")


class TimeLimitExceeded(BaseException):
    """Raised in the thread of a call whose time is over or whose caller has gone.

    It is a BaseException, so that `except Exception` in the called code does not catch it.
    """


class WorkFailed(Exception):
    """Any error that a call raised, with its message."""

    def __init__(self, error: BaseException) -> None:
        message = str(error) if isinstance(error, Exception) else repr(error)
        super().__init__(message or type(error).__name__)


class WorkerThreads:
    """Runner of at most `max_concurrent` calls at a time. A call that cannot be stopped keeps its slot."""

    def __init__(self, max_concurrent: int) -> None:
        self._slots = asyncio.Semaphore(max_concurrent)

    async def run(self, work: Callable[[], T], seconds: float) -> T:
        """Return the result of `work`, run in a thread with the caller's context variables.

        After `seconds` of work, or when the caller is cancelled, the thread is stopped at its next line of Python.
        Raises WorkFailed for an error of `work`, TimeoutError after `seconds`, Overloaded if no slot is free within
        the same time, and RuntimeError if no thread can be started.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise Overloaded(f"All threads for functions were busy for {seconds:g} s; try again later.") from None
        async with asyncio.timeout(seconds):
            item = _WorkItem(work, self._slots.release)
            try:
                return await item.outcome
            finally:
                item.stop()


class _WorkItem:
    """Call in a daemon thread, which does not delay the end of the process."""

    def __init__(self, work: Callable[[], Any], on_end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._is_done = False
        self._lock = threading.Lock()
        self.outcome: asyncio.Future[Any] = self._loop.create_future()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._run, work), daemon=True, name="function")
        try:
            self._thread.start()
        except RuntimeError:  # the system cannot start more threads
            on_end()
            raise

    def stop(self) -> None:
        """Raise TimeLimitExceeded in the thread, unless it has ended. A call into C is not interrupted."""
        with self._lock:
            if not self._is_done and self._thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread.ident), ctypes.py_object(TimeLimitExceeded)
                )

    def _run(self, work: Callable[[], Any]) -> None:
        result, failure = None, None
        try:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 -- SystemExit must not end the process either
                failure = error
            with self._lock:
                self._is_done = True
        except TimeLimitExceeded:  # raised after the call had ended
            self._is_done = True
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._finish, result, failure)

    def _finish(self, result: Any, failure: BaseException | None) -> None:
        self._on_end()
        if self.outcome.done():
            return
        if failure is None:
            self.outcome.set_result(result)
        else:
            self.outcome.set_exception(WorkFailed(failure))
