"""Registry of the functions that this process can call, loaded from their files in the registered version."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from signoff.catalog import Library
from signoff.core.pipelines.coerce import to_text
from signoff.core.pipelines.function import Function
from signoff.core.pipelines.names import join_names
from signoff.core.wire import format_time
from signoff.errors import FunctionFailed, FunctionTimedOut
from signoff.funcs.context import CALL_CONTEXT, CallContext
from signoff.funcs.loading import LoadedFunction, Scan, scan
from signoff.funcs.signature import call_with
from signoff.runtime.snapshot import Snapshot
from signoff.runtime.threads import WorkerThreads, WorkFailed

MAX_CONCURRENT = 32
MAX_RESULT_CHARACTERS = 64 * 1024 * 1024
Prompts = Callable[[], Awaitable[list[str]]]
"""Function that returns the names of the prompts that a caller may use."""
log = structlog.get_logger()


class FunctionRegistry:
    """Registered functions by name. Files are read again when a version is registered that is not loaded."""

    def __init__(self, library: Library, folders: Sequence[Path], *, seconds: float, clock: Callable[[], int]) -> None:
        self._library = library
        self._folders = folders
        self._seconds = seconds
        self._clock = clock
        self._threads = WorkerThreads(MAX_CONCURRENT)
        self._registered = Snapshot(self._read)
        self._scan: Scan | None = None
        self._searched = set[str]()
        self._search_lock = asyncio.Lock()

    async def registered(self) -> Mapping[str, Function]:
        """Return every registered function by name."""
        return await self._registered.get()

    def invalidate(self) -> None:
        """Clear the cache of registered functions."""
        self._registered.invalidate()
        self._searched.clear()

    async def scan(self) -> Scan:
        """Read the files and return the functions in them. Raises FunctionTimedOut, Overloaded."""
        try:
            self._scan = await self._threads.run(lambda: scan(self._folders), self._seconds)
        except TimeoutError:
            raise FunctionTimedOut(f"Reading the files of functions took more than {self._seconds:g} s.") from None
        return self._scan

    async def call(self, function: Function, args: Mapping[str, object], prompts: Prompts) -> str:
        """Return the function's result for arguments by name, as text. `prompts` lists the caller's prompts.

        Raises FunctionFailed, FunctionTimedOut, whose messages name the function, and Overloaded if no thread is free.
        """
        loaded = await self._load(function)
        try:
            text = to_text(await self._run(loaded, args, await self._context(prompts)))
        except TimeoutError:
            raise FunctionTimedOut(f"`{function.name}` took more than {self._seconds:g} s.") from None
        except (WorkFailed, ValueError) as error:
            raise FunctionFailed(f"`{function.name}` failed: {error}") from error
        if len(text) > MAX_RESULT_CHARACTERS:
            raise FunctionFailed(f"`{function.name}` must return at most {MAX_RESULT_CHARACTERS} characters.")
        return text

    async def _read(self) -> dict[str, Function]:
        return {function.name: function for function in await self._library.functions()}

    async def _run(self, loaded: LoadedFunction, args: Mapping[str, object], context: CallContext) -> Any:
        """Return the result as a Python value. Async functions are awaited here; others run in a thread."""
        token = CALL_CONTEXT.set(context)
        try:
            if loaded.function.is_async:
                async with asyncio.timeout(self._seconds):
                    return await _await(lambda: call_with(loaded.python, args))
            return await self._threads.run(lambda: call_with(loaded.python, args), self._seconds)
        finally:
            CALL_CONTEXT.reset(token)

    async def _context(self, prompts: Prompts) -> CallContext:
        loop, registered = asyncio.get_running_loop(), await self.registered()

        def wait(awaitable: Awaitable[Any]) -> Any:
            async def awaiting() -> Any:
                return await awaitable

            if _has_running_loop():
                raise ValueError("an async function cannot call async functions or list prompts")
            return asyncio.run_coroutine_threadsafe(awaiting(), loop).result(self._seconds)

        def call(name: str, values: tuple[object, ...]) -> Any:
            loaded = None if self._scan is None or name not in registered else self._scan.ready.get(name)
            if loaded is None:
                raise ValueError(f"there is no function {name!r}")
            result = loaded.python(*values)
            return wait(result) if loaded.function.is_async else result

        return CallContext(call=call, prompts=lambda: wait(prompts()), now=lambda: format_time(self._clock()))

    async def _load(self, function: Function) -> LoadedFunction:
        """Return the registered version of the function, or else the version that this machine's files have."""
        loaded = self._scanned(function)
        if loaded is None or loaded.function.digest != function.digest:
            async with self._search_lock:  # callers that wait here find what the first one has loaded
                loaded = await self._search(function)
        if loaded is None:
            raise FunctionFailed(
                f"`{function.name}` is registered, but this server cannot load it{self._load_errors(function)}; "
                "correct its file in `functions_dir` on this host."
            )
        return loaded

    async def _search(self, function: Function) -> LoadedFunction | None:
        """Return the loaded function, after reading the files if this version was not searched for before."""
        loaded = self._scanned(function)
        if (loaded is None or loaded.function.digest != function.digest) and function.digest not in self._searched:
            await self._scan_for(function.digest)
            loaded = self._scanned(function)
            if loaded is not None and loaded.function.digest != function.digest:
                log.warning("function_version_mismatch", function=function.name, remedy="POST /api/functions/sync")
        return loaded

    async def _scan_for(self, digest: str) -> None:
        """Read the files, once per version. A cancelled attempt does not count."""
        if len(self._searched) < 1000:
            self._searched.add(digest)
        try:
            await self.scan()
        except asyncio.CancelledError:
            self._searched.discard(digest)
            raise

    def _scanned(self, function: Function) -> LoadedFunction | None:
        return None if self._scan is None else self._scan.ready.get(function.name)

    def _load_errors(self, function: Function) -> str:
        broken = () if self._scan is None else self._scan.broken
        places = [f"{at.file}, line {at.line}: {at.message}" for at in broken if at.file == f"{function.module}.py"]
        return f" ({join_names(places)})" if places else ""


async def _await(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return the result of an async function. Raises WorkFailed for any error but the cancellation of the caller."""
    try:
        return await call()
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError | GeneratorExit) and task is not None and task.cancelling():
            raise
        raise WorkFailed(error) from error


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
