"""Waiting calls: those that are not written down yet, and those that several callers wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

import msgspec

from signoff.core.job import Job
from signoff.core.limits import Reservation
from signoff.runtime.attempt import Attempt
from signoff.runtime.broadcast import Broadcast


class InflightCall:
    """One waiting call: its job, who asked, what came of it, the task that serves it, and the writing of its row.

    `ending` is the writing of its end, where its row stands: it goes on if the caller leaves. `room` is what is
    reserved for it under its limits. Once it `is_counted`, its job has what its asking took.
    """

    def __init__(self, job: Job, *, actor: str) -> None:
        self.job = job
        self.actor = actor
        self.attempt = Attempt()
        self.started_at = asyncio.get_running_loop().time()  # the wall clock may be set
        self.is_over = False
        self.is_recorded = False
        self.is_counted = False
        self.writing: asyncio.Task[Job] | None = None
        self.ending: asyncio.Task[Job | None] | None = None
        self._task: asyncio.Task[object] | None = None
        self.is_lost = False
        self.reservation: Reservation | None = None

    def is_answered_by(self, model: str) -> None:
        """Another model than the job says has begun to answer."""
        self.job = msgspec.structs.replace(self.job, model=model)

    def serve_by(self, task: asyncio.Task[object] | None) -> None:
        """From now on `task` serves the call, or nobody does; it is stopped where the lease is gone by then."""
        self._task = task
        if self.is_lost and task is not None:
            task.cancel()

    def on_lease_lost(self) -> None:
        """The lease is gone: the job was cancelled, or given up for dead. Stops the serving task, if there is one."""
        self.is_lost = True
        self.serve_by(self._task)


class InflightCalls:
    """The calls of this process that nobody has written down yet, oldest first; and those that have several callers."""

    def __init__(self) -> None:
        self._calls: dict[str, InflightCall] = {}
        self._shared: dict[str, Broadcast] = {}
        self._by_coalesce_key: dict[Hashable, Job] = {}

    def add(self, inflight: InflightCall) -> None:
        """Begins to look after `inflight`."""
        self._calls[inflight.job.id] = inflight

    def drop(self, inflight: InflightCall) -> None:
        """Stops to."""
        self._calls.pop(inflight.job.id, None)

    def share(self, job_id: str, shared: Broadcast) -> None:
        """Lets the callers of this process who join that job read along."""
        self._shared[job_id] = shared

    def shared(self, job_id: str) -> Broadcast | None:
        """What the callers of that job read, where it is asked by this process."""
        shared = self._shared.get(job_id)
        return None if shared is None or shared.is_abandoned else shared

    def unshare(self, job_id: str) -> None:
        """Nobody joins any more."""
        self._shared.pop(job_id, None)

    def coalesce(self, request: Hashable, job: Job) -> None:
        """Lets callers of this process who ask the same find `job`, as long as it is shared."""
        self._by_coalesce_key[request] = job

    def stop_coalescing(self, request: Hashable, job: Job) -> None:
        """No more, unless another job has taken its place."""
        if self._by_coalesce_key.get(request) is job:
            del self._by_coalesce_key[request]

    def find_coalesced(self, request: Hashable) -> Job | None:
        """The job that such a request is asked with now."""
        job = self._by_coalesce_key.get(request)
        return None if job is None or self.shared(job.id) is None else job

    async def persist_slow(self, file: Callable[[InflightCall], None], *, after_seconds: float) -> None:
        """Calls `file` for each one that has been running for `after_seconds`, for ever."""
        while True:
            await asyncio.sleep(after_seconds / 10)
            late = asyncio.get_running_loop().time() - after_seconds
            for inflight in [inflight for inflight in self._calls.values() if inflight.started_at <= late]:
                self.drop(inflight)
                file(inflight)
