"""One model as one engine sees it: the life of its process where we own that, else the way to the owner's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from signoff.core.model import Model
from signoff.core.retry import Backoff, wait_seconds
from signoff.engine import State
from signoff.engines.jsonl import JsonLinesClient, NotDelivered
from signoff.engines.log import ModelLog
from signoff.engines.process import PORT_TRIES, Process, is_taken, start_http, start_jsonl
from signoff.engines.process_lock import ProcessLock
from signoff.engines.shared_socket import connect_socket, serve_socket
from signoff.errors import ModelUnreachable

Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

BACKOFF = Backoff(first_seconds=0.5, ceiling_seconds=30)
HEALTHY_SECONDS = 60
# How often a guest shows the owner that it uses the process.
TOUCH_SECONDS = 1
# A process whose definition changed stays this long for guests who may not know that yet.
RETIRED_SECONDS = 3
POLL_SECONDS = 0.05
# How often an owner looks whether it is told to stop, and how long an end may take.
STOP_POLL_SECONDS = 0.2
STOPPED_SECONDS = 10
# A program that speaks lines runs before it is known whether it can.
SETTLE_SECONDS = 0.2


class SupervisedProcess:
    """Where a model is reached: at a process of our own while we hold the claim, else at the owner's."""

    def __init__(
        self, model: Model, run_dir: Path, *, log: ModelLog, spawn: Spawn, monotonic: Callable[[], float]
    ) -> None:
        self.model = model
        self.is_retired = False
        self._lock = ProcessLock(run_dir, model)
        self._log = log
        self._spawn = spawn
        self._monotonic = monotonic
        self._life: _Life | None = None
        self._visits = 0
        self._touched_at: int | None = None
        self._used_at = self._rest_until = monotonic()
        self._failures = 0
        self._neighbour: JsonLinesClient | None = None
        self._connecting = asyncio.Lock()

    @asynccontextmanager
    async def visit(self, *, patient: bool = True) -> AsyncGenerator[ProcessVisit, None]:
        """A port where the model is ready, and stays while the block lasts. Raises ModelUnreachable; unless `patient`,
        as soon as a process of ours has failed.
        """
        self._visits += 1
        touching: asyncio.Task[None] | None = None
        try:
            visit = await self._reach(patient=patient)
            if not visit.is_owner:
                touching = self._spawn(self._keep_touching())
            yield visit
        finally:
            if touching is not None:
                touching.cancel()
            self._visits -= 1
            self._used_at = self._monotonic()

    async def start(self) -> None:
        """Returns when the model is ready. Raises ModelUnreachable, also when it ends as soon as it runs."""
        async with self.visit(patient=False) as visit:
            if visit.is_owner and not self.model.serve:
                await asyncio.sleep(SETTLE_SECONDS)
                life = self._life
                if life is None or life.process is None or not life.process.is_running():
                    raise self._failed()

    def _failed(self) -> ModelUnreachable:
        return ModelUnreachable(f"The model {self.model.name} ended as soon as it ran; its log says more.")

    async def _reach(self, *, patient: bool) -> ProcessVisit:
        deadline = self._monotonic() + self.model.start_seconds
        failures = self._failures
        while True:
            if self._life is None and self._lock.take():
                self._begin()
            if self._life is not None:
                if (port := await self._life.reach()) is not None:
                    return ProcessVisit(port, is_owner=True)
                if not patient and self._failures > failures:
                    raise self._failed()
            elif (port := self._lock.port()) is not None and self._lock.touch():
                return ProcessVisit(port, is_owner=False)
            elif self._monotonic() < deadline:
                await asyncio.sleep(POLL_SECONDS)
            else:
                raise ModelUnreachable(
                    f"The model {self.model.name} belongs to another server process, "
                    f"and was not ready there within {self.model.start_seconds:g} s."
                )

    def _begin(self) -> None:
        """A new life, in a task of its own: the caller who needs it first may leave before it is ready."""
        rest_seconds = self._rest_until - self._monotonic()
        if rest_seconds > self.model.start_seconds:
            self._lock.release()
            raise ModelUnreachable(f"The model {self.model.name} keeps failing; it rests for {rest_seconds:.1f} s.")
        life = _Life(self.model.name)
        try:
            task = self._spawn(self._try(life, rest_seconds))
        except ModelUnreachable:
            self._lock.release()
            raise
        self._life = life
        watching = self._spawn(self._obey(task))
        task.add_done_callback(lambda _: watching.cancel())
        # Not in a `finally` of the task, which never runs when the task is cancelled before its first step.
        task.add_done_callback(lambda _: self._bury(life))

    async def _obey(self, living: asyncio.Task[None]) -> None:
        """Ends a life of ours when another process, or an admin at this one, asks for that."""
        while not self._lock.is_told_to_stop():  # noqa: ASYNC110 -- others leave the sign in a file
            await asyncio.sleep(STOP_POLL_SECONDS)
        living.cancel()

    async def stop(self) -> bool:
        """Ends the model's process, whoever owns it, and tells when it is gone; whether it is so in time.

        Whoever waits for its answer gets an error. The next request starts it again.
        """
        deadline = self._monotonic() + STOPPED_SECONDS
        is_asked = False
        while self._monotonic() < deadline:
            if self._life is None and self._lock.take():
                self._lock.release()
                return True
            if is_asked and not self._lock.is_told_to_stop():  # its owner did so, and somebody may have asked it again
                return True
            if not is_asked:
                self._lock.ask_to_stop()
                is_asked = True
            await asyncio.sleep(POLL_SECONDS)
        self._lock.forget_the_stop()
        return False

    async def _try(self, life: _Life, rest_seconds: float) -> None:
        await asyncio.sleep(rest_seconds)
        try:
            await (self._live(life) if self.model.serve else self._live_in_lines(life))
        except (OSError, ValueError) as error:
            life.complaint = f"cannot be started: {error}."

    async def _live(self, life: _Life) -> None:
        """From a start, on another port if somebody else was faster to take it, to the stop."""
        for _ in range(PORT_TRIES):
            async with start_http(self.model, self._log) as process:
                life.process = process
                life.complaint = await process.startup_error(self.model.start_seconds)
                if life.complaint is None:
                    await self._serve(life, process)
                    return
                if not (process.ended.is_set() and is_taken(process.port)):
                    life.settled.set()
                    return

    async def _live_in_lines(self, life: _Life) -> None:
        """From a start to the stop; other processes of this host ask through a socket meanwhile."""
        async with start_jsonl(self.model, self._log) as process:
            life.process = process
            life.complaint = await process.startup_error(self.model.start_seconds)
            if life.complaint is not None or process.lines is None:
                life.settled.set()
                return
            async with serve_socket(self._lock.socket_path, process.lines, lambda: self.model.timeouts):
                await self._serve(life, process)

    async def _serve(self, life: _Life, process: Process) -> None:
        """Until it is idle, or ends by itself."""
        self._lock.publish(process.port)
        life.port, life.ready_at = process.port, self._monotonic()
        life.settled.set()
        try:
            while not (process.ended.is_set() or self._is_idle()):
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(POLL_SECONDS, min(1, self.model.idle_seconds / 4))):
                        await process.ended.wait()
        finally:
            # First nobody new is sent there, then it stops, then somebody else may be the owner.
            life.is_leaving = True
            self._lock.withdraw()
        if process.ended.is_set():
            life.complaint = "ended by itself."

    def _is_idle(self) -> bool:
        touched_at = self._lock.touched_at()
        if touched_at != self._touched_at:
            self._touched_at, self._used_at = touched_at, self._monotonic()
        limit_seconds = min(self.model.idle_seconds, RETIRED_SECONDS) if self.is_retired else self.model.idle_seconds
        return not self._visits and self._monotonic() - self._used_at >= limit_seconds

    def _bury(self, life: _Life) -> None:
        now = self._monotonic()
        if life.complaint is None:
            self._failures = 0
        else:
            was_healthy = life.ready_at is not None and now - life.ready_at >= HEALTHY_SECONDS
            self._failures = 1 if was_healthy else self._failures + 1
            self._rest_until = now + wait_seconds(BACKOFF, self._failures, random_float=1)
        self._life = None
        self._lock.forget_the_stop()
        self._lock.release()
        life.settled.set()
        life.over.set()

    async def lines(self, visit: ProcessVisit) -> JsonLinesClient:
        """The way to talk with the program. Raises NotAsked where it is gone meanwhile."""
        if visit.is_owner:
            process = None if self._life is None else self._life.process
            if process is None or process.lines is None:
                raise NotDelivered(f"The model {self.model.name} has just stopped.")
            return process.lines
        async with self._connecting:
            if self._neighbour is None or self._neighbour.is_over:
                self._neighbour = await connect_socket(self.model.name, self._lock.socket_path, self._spawn)
            return self._neighbour

    async def _keep_touching(self) -> None:
        while True:
            await asyncio.sleep(max(POLL_SECONDS, min(TOUCH_SECONDS, self.model.idle_seconds / 3)))
            self._lock.touch()

    def doubt(self, visit: ProcessVisit) -> None:
        """Nobody listened there. If that was our process, it has ended, or has to."""
        life = self._life
        if life is not None and life.process is not None and life.port == visit.port:
            life.is_leaving = True
            life.process.hang_up()

    def state(self) -> State:
        """How the model is; of another owner's process only what its visitors need to know."""
        life = self._life
        if life is None and self._lock.port() is None:
            return "starting" if self._visits else "failed" if self._failures else "stopped"
        if life is not None and life.complaint is not None:
            return "failed"
        if life is not None and life.port is None:
            return "starting"
        if life is not None and life.is_leaving:
            return "stopped"
        return "busy" if self._visits else "ready"


class ProcessVisit(msgspec.Struct, frozen=True):
    """Where a caller finds the model, and whether the process there is our own."""

    port: int
    is_owner: bool


class _Life:
    """One life of a process of ours: `settled` once it is ready or will never be, `over` when it is gone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.settled = asyncio.Event()
        self.over = asyncio.Event()
        self.process: Process | None = None
        self.port: int | None = None
        self.ready_at: float | None = None
        self.complaint: str | None = None
        self.is_leaving = False

    async def reach(self) -> int | None:
        """Its port; None when it ends just now. Raises ModelUnreachable when one waited in vain for it to get ready."""
        came_late = self.settled.is_set()
        await self.settled.wait()
        if self.port is None and not came_late:
            raise ModelUnreachable(f"The model {self.name} {self.complaint or 'was stopped as it started.'}")
        if self.port is None or self.is_leaving or not (self.process and self.process.is_running()):
            await self.over.wait()
            return None
        return self.port
