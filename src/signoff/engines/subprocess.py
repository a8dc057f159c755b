"""Engine of models that are processes: one per host, started on first use and after a crash, stopped when idle."""

import asyncio
import errno
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from pathlib import Path

import structlog

from signoff.core.model import Model
from signoff.engine import ModelRequest, ProcessState, Sink
from signoff.engines.jsonl import NotDelivered
from signoff.engines.jsonl_answers import pass_on_answer
from signoff.engines.log import ModelLog
from signoff.engines.openai import ask
from signoff.engines.process import HOST, STOP_SECONDS
from signoff.engines.supervised_process import SupervisedProcess
from signoff.engines.upstream import UpstreamClient
from signoff.errors import BadRequest, ModelUnreachable

MAX_ATTEMPTS = 5
log = structlog.get_logger()


def _ignore_line(_name: str, _line: str) -> None:
    pass


class SubprocessEngine:
    """Engine of models that speak JSON lines, or serve HTTP on a port that the engine chooses (`serve`).

    The caller starts and closes `upstream`. Of all engines with the same `run_dir`, one owns a model's process; the
    others use its port, or the owner's socket.

    `monotonic` returns seconds. `on_log_line` is called with the name of a model and each line of its log.
    """

    def __init__(
        self,
        upstream: UpstreamClient,
        run_dir: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        on_log_line: Callable[[str, str], None] = _ignore_line,
    ) -> None:
        self._upstream = upstream
        self._run_dir = run_dir
        self._monotonic = monotonic
        self._on_log_line = on_log_line
        self._tasks = _Tasks()
        self._processes: dict[str, SupervisedProcess] = {}
        self._logs: dict[str, ModelLog] = {}

    async def start(self) -> None:
        """Create `run_dir`. Models start with their first request."""
        await asyncio.to_thread(self._run_dir.mkdir, mode=0o700, parents=True, exist_ok=True)

    async def answer(self, model: Model, request: ModelRequest, sink: Sink) -> bytes | None:
        """Return or send the model's answer, once it is ready. Raises BadRequest, ModelFailed and its subclasses."""
        if not model.command:
            raise BadRequest(f"The model {model.name} has no `command`; set it.")
        process = self._process_of(model)
        if model.serve:
            return await self._ask_over_http(process, model, request, sink)
        return await self._ask_over_jsonl(process, model, request, sink)

    async def _ask_over_jsonl(
        self, process: SupervisedProcess, model: Model, request: ModelRequest, sink: Sink
    ) -> bytes | None:
        """Send the request again while the program, or the owner of its process, has just stopped."""
        for attempts_left in reversed(range(MAX_ATTEMPTS)):
            async with process.use() as address:
                try:
                    client = await process.jsonl_client(address)
                    async with aclosing(client.ask(_operation(request.path), request.body, model.timeouts)) as messages:
                        return await pass_on_answer(messages, request, sink)
                except NotDelivered:
                    if not attempts_left:
                        raise
        raise AssertionError  # the last attempt returns or raises

    async def _ask_over_http(
        self, process: SupervisedProcess, model: Model, request: ModelRequest, sink: Sink
    ) -> bytes | None:
        try_again = True
        while True:
            async with process.use() as address:
                try:
                    return await ask(self._upstream, f"http://{HOST}:{address.port}", model, request, sink)
                except ModelUnreachable as error:
                    if not _is_connection_refused(error):
                        raise
                    process.report_refused(address)
                    if address.is_owner or not try_again:
                        raise
            try_again = False

    def _process_of(self, model: Model) -> SupervisedProcess:
        process = self._processes.get(model.name)
        if process is None or _program(process.model) != _program(model):
            if process is not None:
                process.is_retired = True
            model_log = self._logs.setdefault(model.name, ModelLog(partial(self._on_log_line, model.name)))
            start_task = partial(self._tasks.start, model.name)
            process = SupervisedProcess(
                model, self._run_dir, log=model_log, start_task=start_task, monotonic=self._monotonic
            )
            self._processes[model.name] = process
        process.model = model
        return process

    def process_state(self, model: Model) -> ProcessState:
        """See `engine.ProcessEngine`."""
        return self._process_of(model).state() if model.command else "failed"

    async def start_model(self, model: Model) -> None:
        """See `engine.ProcessEngine`."""
        await self._process_of(model).start()

    async def stop_model(self, model: Model) -> bool:
        """See `engine.ProcessEngine`."""
        await self.start()  # a command-line process stops models without starting its engines
        return await self._process_of(model).stop()

    async def close(self) -> None:
        """Stop the models that this engine owns. Requests that wait for them raise ModelUnreachable."""
        await self._tasks.close()


def _program(model: Model) -> tuple[object, ...]:
    """Return the settings whose change requires a new process."""
    return model.command, model.serve, model.limits


def _operation(path: str) -> str:
    """Return the operation of a path, as a program receives it: `predict`, `chat/completions`."""
    return path.removeprefix("/v1").strip("/")


def _is_connection_refused(error: ModelUnreachable) -> bool:
    """Return True if no process listened: the model, or its owner, has crashed or just stopped."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ECONNREFUSED


class _Tasks:
    """Background tasks of the engine, which may outlive the request that started them."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[None]]()
        self._is_closed = False

    def start(self, model_name: str, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start `coroutine` as a task of a model. Raises ModelUnreachable after `close`."""
        if self._is_closed:
            coroutine.close()
            raise ModelUnreachable("The server is stopping.")
        task = asyncio.get_running_loop().create_task(coroutine, name=model_name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("model_supervision_failed", model=task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel all tasks and wait for their end. May be called more than once."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS + 1)
