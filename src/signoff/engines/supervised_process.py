"""Supervision of one model's process: our own process if we own the lock, else the owner's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from signoff.core.model import Model
from signoff.core.retry import Backoff, wait_seconds
from signoff.engine import ProcessState
from signoff.engines.jsonl import JsonLinesClient, NotDelivered
from signoff.engines.log import ModelLog
from signoff.engines.process import PORT_TRIES, Process, is_port_in_use, start_http, start_jsonl
from signoff.engines.process_lock import ProcessLock
from signoff.engines.shared_socket import connect_socket, serve_socket
from signoff.errors import ModelUnreachable

StartTask = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

BACKOFF = Backoff(first_seconds=0.5, ceiling_seconds=30)
HEALTHY_SECONDS = 60
# How often a process that is not the owner shows that it uses the model.
TOUCH_INTERVAL_SECONDS = 1
# A process whose definition changed stays this long for other server processes that have not noticed the change yet.
RETIRED_SECONDS = 3
POLL_SECONDS = 0.05
# How often an owner checks for a request to stop, and how long `stop` waits for the process to end.
STOP_POLL_SECONDS = 0.2
STOP_TIMEOUT_SECONDS = 10
# A program that speaks JSON lines counts as ready before it has shown that it works.
SETTLE_SECONDS = 0.2


class SupervisedProcess:
    """Process of a model, supervised by this engine while it owns the lock; otherwise the address of the owner's.

    Restarts after a crash follow BACKOFF. `start_task` starts a task that outlives the caller.
    """

    def __init__(
        self, model: Model, run_dir: Path, *, log: ModelLog, start_task: StartTask, monotonic: Callable[[], float]
    ) -> None:
        self.model = model
        """The model; the engine replaces it when settings change that need no new process."""
        self.is_retired = False
        """True after a change that needs a new process: this one ends once it is idle for RETIRED_SECONDS."""
        self._lock = ProcessLock(run_dir, model)
        self._log = log
        self._start_task = start_task
        self._monotonic = monotonic
        self._instance: _Instance | None = None
        self._users = 0
        self._touched_at: int | None = None
        self._used_at = self._cooldown_until = monotonic()
        self._failures = 0
        self._shared_client: JsonLinesClient | None = None
        self._connect_lock = asyncio.Lock()

    @asynccontextmanager
    async def use(self, *, retry: bool = True) -> AsyncGenerator[ProcessAddress, None]:
        """Yield an address where the model is ready, and keep it running for the duration of the block.

        Raises ModelUnreachable: without `retry`, as soon as a process of ours has failed.
        """
        self._users += 1
        touch_task: asyncio.Task[None] | None = None
        try:
            address = await self._locate(retry=retry)
            if not address.is_owner:
                touch_task = self._start_task(self._keep_touching())
            yield address
        finally:
            if touch_task is not None:
                touch_task.cancel()
            self._users -= 1
            self._used_at = self._monotonic()

    async def start(self) -> None:
        """Start the model and wait until it is ready. Raises ModelUnreachable if it fails or ends at once."""
        async with self.use(retry=False) as address:
            if address.is_owner and not self.model.serve:
                await asyncio.sleep(SETTLE_SECONDS)
                instance = self._instance
                if instance is None or instance.process is None or not instance.process.is_running():
                    raise self._start_error()

    def _start_error(self) -> ModelUnreachable:
        return ModelUnreachable(f"The model {self.model.name} ended right after its start. See its log for details.")

    async def _locate(self, *, retry: bool) -> ProcessAddress:
        """Wait until the model is ready, in our process or in another owner's, and return its address; see `use`."""
        deadline = self._monotonic() + self.model.start_seconds
        failures = self._failures
        while True:
            if self._instance is None and self._lock.acquire():
                self._start_instance()
            if self._instance is not None:
                if (port := await self._instance.wait_for_port()) is not None:
                    return ProcessAddress(port, is_owner=True)
                if not retry and self._failures > failures:
                    raise self._start_error()
            elif (port := self._lock.port()) is not None and self._lock.touch():
                return ProcessAddress(port, is_owner=False)
            elif self._monotonic() < deadline:
                await asyncio.sleep(POLL_SECONDS)
            else:
                raise ModelUnreachable(
                    f"The model {self.model.name} belongs to another server process, "
                    f"and was not ready there within {self.model.start_seconds:g} s."
                )

    def _start_instance(self) -> None:
        """Start a new instance in its own task, because the caller that needs it first may leave before it is ready."""
        cooldown_seconds = self._cooldown_until - self._monotonic()
        if cooldown_seconds > self.model.start_seconds:
            self._lock.release()
            raise ModelUnreachable(f"The model {self.model.name} keeps failing. Retry in {cooldown_seconds:.1f} s.")
        instance = _Instance(self.model.name)
        try:
            task = self._start_task(self._run_after(instance, cooldown_seconds))
        except ModelUnreachable:
            self._lock.release()
            raise
        self._instance = instance
        watcher = self._start_task(self._watch_for_stop(task))
        task.add_done_callback(lambda _: watcher.cancel())
        # Not in a `finally` of the task, which does not run if the task is cancelled before its first step.
        task.add_done_callback(lambda _: self._on_instance_end(instance))

    async def _watch_for_stop(self, running: asyncio.Task[None]) -> None:
        """Stop our instance when any process of this host requests it."""
        while not self._lock.is_stop_requested():  # noqa: ASYNC110 -- the request is a file
            await asyncio.sleep(STOP_POLL_SECONDS)
        running.cancel()

    async def stop(self) -> bool:
        """Stop the model's process, whichever process owns it. Return False if it runs after STOP_TIMEOUT_SECONDS.

        Requests in progress get an error. The next request starts the model again.
        """
        deadline = self._monotonic() + STOP_TIMEOUT_SECONDS
        is_requested = False
        while self._monotonic() < deadline:
            if self._instance is None and self._lock.acquire():
                self._lock.release()
                return True
            if is_requested and not self._lock.is_stop_requested():  # stopped by its owner, and maybe started again
                return True
            if not is_requested:
                self._lock.request_stop()
                is_requested = True
            await asyncio.sleep(POLL_SECONDS)
        self._lock.clear_stop_request()
        return False

    async def _run_after(self, instance: _Instance, cooldown_seconds: float) -> None:
        await asyncio.sleep(cooldown_seconds)
        try:
            await (self._run_http(instance) if self.model.serve else self._run_jsonl(instance))
        except (OSError, ValueError) as error:
            instance.error = f"cannot be started: {error}."

    async def _run_http(self, instance: _Instance) -> None:
        """Run an HTTP model from its start to its stop; try another port if the chosen one was taken meanwhile."""
        for _ in range(PORT_TRIES):
            async with start_http(self.model, self._log) as process:
                instance.process = process
                instance.error = await process.startup_error(self.model.start_seconds)
                if instance.error is None:
                    await self._serve(instance, process)
                    return
                if not (process.ended.is_set() and is_port_in_use(process.port)):
                    instance.startup_done.set()
                    return

    async def _run_jsonl(self, instance: _Instance) -> None:
        """Run a JSON lines model from its start to its stop; other processes use it through a socket."""
        async with start_jsonl(self.model, self._log) as process:
            instance.process = process
            instance.error = await process.startup_error(self.model.start_seconds)
            if instance.error is not None or process.lines is None:
                instance.startup_done.set()
                return
            async with serve_socket(self._lock.socket_path, process.lines, lambda: self.model.timeouts):
                await self._serve(instance, process)

    async def _serve(self, instance: _Instance, process: Process) -> None:
        """Keep the model available until it is idle or ends."""
        self._lock.publish(process.port)
        instance.port, instance.ready_at = process.port, self._monotonic()
        instance.startup_done.set()
        try:
            while not (process.ended.is_set() or self._is_idle()):
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(POLL_SECONDS, min(1, self.model.idle_seconds / 4))):
                        await process.ended.wait()
        finally:
            # In this order: no new users, then the stop of the process, then the release of the lock.
            instance.is_stopping = True
            self._lock.unpublish()
        if process.ended.is_set():
            instance.error = "ended unexpectedly."

    def _is_idle(self) -> bool:
        """Return True if the model is unused for its `idle_seconds`; a touch by another process counts as a use."""
        touched_at = self._lock.touched_at()
        if touched_at != self._touched_at:
            self._touched_at, self._used_at = touched_at, self._monotonic()
        limit_seconds = min(self.model.idle_seconds, RETIRED_SECONDS) if self.is_retired else self.model.idle_seconds
        return not self._users and self._monotonic() - self._used_at >= limit_seconds

    def _on_instance_end(self, instance: _Instance) -> None:
        now = self._monotonic()
        if instance.error is None:
            self._failures = 0
        else:
            was_healthy = instance.ready_at is not None and now - instance.ready_at >= HEALTHY_SECONDS
            self._failures = 1 if was_healthy else self._failures + 1
            self._cooldown_until = now + wait_seconds(BACKOFF, self._failures, random_float=1)
        self._instance = None
        self._lock.clear_stop_request()
        self._lock.release()
        instance.startup_done.set()
        instance.ended.set()

    async def jsonl_client(self, address: ProcessAddress) -> JsonLinesClient:
        """Return the client of the program. Raises NotDelivered if the program has stopped meanwhile."""
        if address.is_owner:
            process = None if self._instance is None else self._instance.process
            if process is None or process.lines is None:
                raise NotDelivered(f"The model {self.model.name} has just stopped.")
            return process.lines
        async with self._connect_lock:
            if self._shared_client is None or self._shared_client.is_closed:
                self._shared_client = await connect_socket(self.model.name, self._lock.socket_path, self._start_task)
            return self._shared_client

    async def _keep_touching(self) -> None:
        while True:
            await asyncio.sleep(max(POLL_SECONDS, min(TOUCH_INTERVAL_SECONDS, self.model.idle_seconds / 3)))
            self._lock.touch()

    def report_refused(self, address: ProcessAddress) -> None:
        """Record that no process listened at `address`. If it is ours, stop it."""
        instance = self._instance
        if instance is not None and instance.process is not None and instance.port == address.port:
            instance.is_stopping = True
            instance.process.request_stop()

    def state(self) -> ProcessState:
        """Return the state of the model. The owner's process appears as ready or busy."""
        instance = self._instance
        if instance is None and self._lock.port() is None:
            return "starting" if self._users else "failed" if self._failures else "stopped"
        if instance is not None and instance.error is not None:
            return "failed"
        if instance is not None and instance.port is None:
            return "starting"
        if instance is not None and instance.is_stopping:
            return "stopped"
        return "busy" if self._users else "ready"


class ProcessAddress(msgspec.Struct, frozen=True):
    """Address at which a model is ready."""

    port: int
    """TCP port; 0 for a program that speaks JSON lines."""
    is_owner: bool
    """True if the process is our own."""


class _Instance:
    """Life of one process of ours: `startup_done` is set once it is ready or has failed, `ended` once it is gone.

    `error` is the rest of a sentence that begins with the model's name; None without an error.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.startup_done = asyncio.Event()
        self.ended = asyncio.Event()
        self.process: Process | None = None
        self.port: int | None = None
        self.ready_at: float | None = None
        self.error: str | None = None
        self.is_stopping = False

    async def wait_for_port(self) -> int | None:
        """Wait until the model is ready and return its port; None if it is ending.

        Raises ModelUnreachable if it failed to start during the wait.
        """
        was_done = self.startup_done.is_set()
        await self.startup_done.wait()
        if self.port is None and not was_done:
            raise ModelUnreachable(f"The model {self.name} {self.error or 'was stopped during its start.'}")
        if self.port is None or self.is_stopping or not (self.process and self.process.is_running()):
            await self.ended.wait()
            return None
        return self.port
