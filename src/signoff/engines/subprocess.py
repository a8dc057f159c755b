"""Models that are processes: one of each a host, started on first use and after a crash, stopped when idle."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from pathlib import Path

from signoff.core.answer import Chunk
from signoff.core.model import Model
from signoff.engine import ModelRequest, State
from signoff.engines.jsonl import NotDelivered
from signoff.engines.jsonl_chunks import chunks_of
from signoff.engines.log import ModelLog
from signoff.engines.openai import ask
from signoff.engines.process import HOST, STOP_SECONDS
from signoff.engines.supervised_process import SupervisedProcess
from signoff.engines.upstream import UpstreamClient
from signoff.errors import BadRequest, ModelUnreachable

TRIES = 5
_logger = logging.getLogger(__name__)


def _nobody_hears(_name: str, _line: str) -> None:
    pass


class SubprocessEngine:
    """Asks models that speak JSON lines, or serve HTTP on a port which we give them (`serve`).

    Whoever made the `upstream` starts and closes it. Of all engines with the same `run_dir` one owns a model's process,
    and the others ask at its port, or through the owner's socket.
    `monotonic` tells seconds; `tell` hears the name of a model and each line that it writes to its log.
    """

    def __init__(
        self,
        upstream: UpstreamClient,
        run_dir: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        tell: Callable[[str, str], None] = _nobody_hears,
    ) -> None:
        self._upstream = upstream
        self._run_dir = run_dir
        self._monotonic = monotonic
        self._tell = tell
        self._tasks = _Tasks()
        self._places: dict[str, SupervisedProcess] = {}
        self._logs: dict[str, ModelLog] = {}

    async def start(self) -> None:
        """Make the folder where owners are found. A model starts when it is asked."""
        await asyncio.to_thread(self._run_dir.mkdir, mode=0o700, parents=True, exist_ok=True)

    async def answer(self, model: Model, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        """What the model says, once it is ready. Raises BadRequest, ModelFailed and its kin."""
        if not model.command:
            raise BadRequest(f"The model {model.name} needs a command.")
        place = self._place(model)
        answer = self._over_http(place, model, request) if model.serve else self._in_lines(place, model, request)
        async with aclosing(answer) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _in_lines(
        self, place: SupervisedProcess, model: Model, request: ModelRequest
    ) -> AsyncGenerator[Chunk, None]:
        """Asks until the request reached the program: one that has just stopped, or whose owner has, is found anew."""
        began = False
        for tries_left in reversed(range(TRIES)):
            async with place.visit() as visit:
                try:
                    lines = await place.lines(visit)
                    talk = lines.ask(_operation(request.path), request.body, model.timeouts)
                    async with aclosing(talk) as said:
                        async for chunk in chunks_of(said, request):
                            began = True
                            yield chunk
                except NotDelivered:
                    if began or not tries_left:
                        raise
                else:
                    return

    async def _over_http(
        self, place: SupervisedProcess, model: Model, request: ModelRequest
    ) -> AsyncGenerator[Chunk, None]:
        for may_ask_again in (True, False):
            async with place.visit() as visit:
                try:
                    async with aclosing(ask(self._upstream, f"http://{HOST}:{visit.port}", model, request)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                except ModelUnreachable as error:
                    if not _was_refused(error):
                        raise
                    place.doubt(visit)
                    if visit.is_owner or not may_ask_again:
                        raise
                else:
                    return

    def _place(self, model: Model) -> SupervisedProcess:
        place = self._places.get(model.name)
        if place is None or _program(place.model) != _program(model):
            if place is not None:
                place.is_retired = True
            log = self._logs.setdefault(model.name, ModelLog(partial(self._tell, model.name)))
            place = SupervisedProcess(model, self._run_dir, log=log, spawn=self._tasks.spawn, monotonic=self._monotonic)
            self._places[model.name] = place
        place.model = model
        return place

    def process_state(self, model: Model) -> State:
        """How the model is, whichever process of this host owns it."""
        return self._place(model).state() if model.command else "failed"

    async def start_model(self, model: Model) -> None:
        """See `engine.RunsModels`."""
        await self._place(model).start()

    async def stop_model(self, model: Model) -> bool:
        """See `engine.RunsModels`."""
        await self.start()  # a command that stops a model runs none
        return await self._place(model).stop()

    async def close(self) -> None:
        """Stop the models that this engine owns; whoever waits for them gets ModelUnreachable."""
        await self._tasks.close()


def _program(model: Model) -> tuple[object, ...]:
    """What makes a process another one."""
    return model.command, model.serve, model.limits


def _operation(path: str) -> str:
    """What a program is told of the path: `predict`, `chat/completions`."""
    return path.removeprefix("/v1").strip("/")


def _was_refused(error: ModelUnreachable) -> bool:
    """Whether nobody listened: the process, or its owner, is lost or has just stopped."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ECONNREFUSED


class _Tasks:
    """Work that belongs to the engine and not to a caller, who may leave before it is done."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[None]]()
        self._is_closed = False

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Begin `work`. Raises ModelUnreachable after the close."""
        if self._is_closed:
            work.close()
            raise ModelUnreachable("The server is stopping.")
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _logger.error("a model's process was not minded to its end", exc_info=error)

    async def close(self) -> None:
        """Cancel everything and wait for its end. A second call does nothing."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS + 1)
