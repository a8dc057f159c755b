"""The functions that this process can call: those that are registered, in the files as they were when they were."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

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
from signoff.store import Library

AT_ONCE = 32
MAX_RESULT_CHARACTERS = 64 * 1024 * 1024
Prompts = Callable[[], Awaitable[list[str]]]
log = structlog.get_logger()


class FunctionRegistry:
    """Registered functions by name, and calling them. A file is read again when another version of it is registered."""

    def __init__(
        self, compositions: Library, folders: Sequence[Path], *, seconds: float, clock: Callable[[], int]
    ) -> None:
        self._compositions = compositions
        self._folders = folders
        self._seconds = seconds
        self._clock = clock
        self._threads = WorkerThreads(AT_ONCE)
        self._registered = Snapshot(self._read)
        self._scan: Scan | None = None
        self._looked_for = set[str]()
        self._looking = asyncio.Lock()

    async def registered(self) -> Mapping[str, Function]:
        """Every registered function by its name."""
        return await self._registered.get()

    def invalidate(self) -> None:
        """The copy of what is registered is out of date."""
        self._registered.invalidate()
        self._looked_for.clear()

    async def scan(self) -> Scan:
        """What the files hold now. Raises FunctionTimedOut."""
        try:
            self._scan = await self._threads.run(lambda: scan(self._folders), self._seconds)
        except TimeoutError:
            raise FunctionTimedOut(f"Reading the files of functions takes more than {self._seconds:g} s.") from None
        return self._scan

    async def call(self, function: Function, args: Mapping[str, object], prompts: Prompts) -> str:
        """What it gives for arguments by name, as a text. `prompts` names those that the caller may use.

        Raises FunctionFailed, which names the call.
        """
        ready = await self._ready(function)
        try:
            async with asyncio.timeout(self._seconds):
                result = await self._result(ready, args, await self._around(prompts))
            text = to_text(result)
        except TimeoutError:
            raise FunctionTimedOut(f"`{function.name}` took more than {self._seconds:g} s.") from None
        except (WorkFailed, ValueError) as error:
            raise FunctionFailed(f"`{function.name}` failed: {error}") from error
        if len(text) > MAX_RESULT_CHARACTERS:
            raise FunctionFailed(f"`{function.name}` gave more than {MAX_RESULT_CHARACTERS} characters.")
        return text

    async def _read(self) -> dict[str, Function]:
        return {function.name: function for function in await self._compositions.functions()}

    async def _result(self, ready: LoadedFunction, args: Mapping[str, object], around: CallContext) -> Any:
        """Its result, still as Python has it; what is async is awaited here, all else runs in a thread."""
        token = CALL_CONTEXT.set(around)
        try:
            if ready.function.is_async:
                return await _awaited(lambda: call_with(ready.python, args))
            return await self._threads.run(lambda: call_with(ready.python, args), self._seconds)
        finally:
            CALL_CONTEXT.reset(token)

    async def _around(self, prompts: Prompts) -> CallContext:
        loop, known = asyncio.get_running_loop(), await self.registered()

        def wait(work: Awaitable[Any]) -> Any:
            async def waiting() -> Any:
                return await work

            if _is_in_a_loop():
                raise ValueError("a function that is async asks the server for nothing that takes time")
            return asyncio.run_coroutine_threadsafe(waiting(), loop).result(self._seconds)

        def call(name: str, values: tuple[object, ...]) -> Any:
            ready = None if self._scan is None or name not in known else self._scan.ready.get(name)
            if ready is None:
                raise ValueError(f"there is no function {name!r}")
            result = ready.python(*values)
            return wait(result) if ready.function.is_async else result

        return CallContext(call=call, prompts=lambda: wait(prompts()), now=lambda: format_time(self._clock()))

    async def _ready(self, function: Function) -> LoadedFunction:
        """The very version that is registered, or whichever this machine's files have."""
        ready = self._known(function)
        if ready is None or ready.function.digest != function.digest:
            async with self._looking:  # whoever comes meanwhile finds what the first one has read
                ready = await self._looked_up(function)
        if ready is None:
            raise FunctionFailed(
                f"`{function.name}` is registered, but this server cannot read it{self._why(function)}."
            )
        return ready

    async def _looked_up(self, function: Function) -> LoadedFunction | None:
        """What is known of it, after another look at the files if nobody has looked for that version yet."""
        ready = self._known(function)
        if (ready is None or ready.function.digest != function.digest) and function.digest not in self._looked_for:
            await self._look_for(function.digest)
            ready = self._known(function)
            if ready is not None and ready.function.digest != function.digest:
                log.warning("a function's file here is not the one that was registered", function=function.name)
        return ready

    async def _look_for(self, digest: str) -> None:
        """Reads the files; once for each version, unless whoever wanted it has left before they were read."""
        if len(self._looked_for) < 1000:
            self._looked_for.add(digest)
        try:
            await self.scan()
        except asyncio.CancelledError:
            self._looked_for.discard(digest)
            raise

    def _known(self, function: Function) -> LoadedFunction | None:
        return None if self._scan is None else self._scan.ready.get(function.name)

    def _why(self, function: Function) -> str:
        broken = () if self._scan is None else self._scan.broken
        places = [f"{at.file}, line {at.line}: {at.message}" for at in broken if at.file == f"{function.module}.py"]
        return f" ({join_names(places)})" if places else ""


async def _awaited(work: Callable[[], Awaitable[Any]]) -> Any:
    """What an async function gives. Raises Failed for what it raises, but for the cancellation of its caller."""
    try:
        return await work()
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError | GeneratorExit) and task is not None and task.cancelling():
            raise
        raise WorkFailed(error) from error


def _is_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
