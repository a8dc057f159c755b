"""Waiting calls: those that are not written down yet, and those that several callers wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

import msgspec

from signoff.core.job import Job
from signoff.core.limits import Room
from signoff.runtime.attempt import Asking
from signoff.runtime.broadcast import Shared


class Flight:
    """One waiting call: its job, who asked, what came of it, the task that serves it, and the writing of its row.

    `ending` is the writing of its end, where its row stands: it goes on if the caller leaves. `room` is what is
    reserved for it under its limits. Once it `is_counted`, its job has what its asking took.
    """

    def __init__(self, job: Job, *, actor: str) -> None:
        self.job = job
        self.actor = actor
        self.asking = Asking()
        self.began_at = asyncio.get_running_loop().time()  # the wall clock may be set
        self.over = False
        self.is_recorded = False
        self.is_counted = False
        self.filing: asyncio.Task[Job] | None = None
        self.ending: asyncio.Task[Job | None] | None = None
        self._task: asyncio.Task[object] | None = None
        self.lost = False
        self.room: Room | None = None

    def is_answered_by(self, model: str) -> None:
        """Another model than the job says has begun to answer."""
        self.job = msgspec.structs.replace(self.job, model=model)

    def take_up(self, task: asyncio.Task[object] | None) -> None:
        """From now on `task` serves the call, or nobody does; it is stopped where the lease is gone by then."""
        self._task = task
        if self.lost and task is not None:
            task.cancel()

    def lose(self) -> None:
        """The lease is gone: the job was cancelled, or given up for dead. Stops the serving task, if there is one."""
        self.lost = True
        self.take_up(self._task)


class InFlight:
    """The calls of this process that nobody has written down yet, oldest first; and those that have several callers."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}
        self._shared: dict[str, Shared] = {}
        self._alike: dict[Hashable, Job] = {}

    def add(self, flight: Flight) -> None:
        """Begins to look after `flight`."""
        self._flights[flight.job.id] = flight

    def drop(self, flight: Flight) -> None:
        """Stops to."""
        self._flights.pop(flight.job.id, None)

    def share(self, job_id: str, shared: Shared) -> None:
        """Lets the callers of this process who join that job read along."""
        self._shared[job_id] = shared

    def shared(self, job_id: str) -> Shared | None:
        """What the callers of that job read, where it is asked by this process."""
        shared = self._shared.get(job_id)
        return None if shared is None or shared.is_left else shared

    def unshare(self, job_id: str) -> None:
        """Nobody joins any more."""
        self._shared.pop(job_id, None)

    def liken(self, request: Hashable, job: Job) -> None:
        """Lets callers of this process who ask the same find `job`, as long as it is shared."""
        self._alike[request] = job

    def unliken(self, request: Hashable, job: Job) -> None:
        """No more, unless another job has taken its place."""
        if self._alike.get(request) is job:
            del self._alike[request]

    def alike(self, request: Hashable) -> Job | None:
        """The job that such a request is asked with now."""
        job = self._alike.get(request)
        return None if job is None or self.shared(job.id) is None else job

    async def file_the_slow(self, file: Callable[[Flight], None], *, after_seconds: float) -> None:
        """Calls `file` for each one that has been running for `after_seconds`, for ever."""
        while True:
            await asyncio.sleep(after_seconds / 10)
            late = asyncio.get_running_loop().time() - after_seconds
            for flight in [flight for flight in self._flights.values() if flight.began_at <= late]:
                self.drop(flight)
                file(flight)
