"""In-flight calls: those without a row in the store, and those that several callers share."""

import asyncio
from collections.abc import Callable, Hashable

import msgspec

from signoff.core.job import Job
from signoff.core.limits import Reservation
from signoff.runtime.attempt import Attempt
from signoff.runtime.broadcast import Broadcast


class InflightCall:
    """Waiting call: its job, its actor, its attempt, the task that serves it, and the writing of its row."""

    def __init__(self, job: Job, *, actor: str) -> None:
        self.job = job
        self.actor = actor
        self.attempt = Attempt()
        self.started_at = asyncio.get_running_loop().time()  # not the wall clock, which may be set
        self.is_over = False
        """True once the outcome is being recorded: a row that is inserted later does not keep its lease."""
        self.is_recorded = False
        """True once the outcome is in the store."""
        self.is_counted = False
        """True once `job` has the usage and the times of the attempt."""
        self.writing: asyncio.Task[Job] | None = None
        """The insert of the row, if the call has one."""
        self.ending: asyncio.Task[Job | None] | None = None
        """The settling of the row, which goes on if the caller leaves."""
        self._task: asyncio.Task[object] | None = None
        self.is_lost = False
        """True once the lease is lost."""
        self.reservation: Reservation | None = None
        """The reservation under the call's limits."""

    def is_answered_by(self, model: str) -> None:
        """Record that `model` answers, which is not the model in the job."""
        self.job = msgspec.structs.replace(self.job, model=model)

    def serve_by(self, task: asyncio.Task[object] | None) -> None:
        """Set the task that serves the call (None: no task). It is cancelled if the lease is lost already."""
        self._task = task
        if self.is_lost and task is not None:
            task.cancel()

    def on_lease_lost(self) -> None:
        """Cancel the serving task: the job was cancelled, or was rescued by another process."""
        self.is_lost = True
        self.serve_by(self._task)


class InflightCalls:
    """Index of this process's calls that have no row yet, oldest first, and of those with several callers."""

    def __init__(self) -> None:
        self._calls: dict[str, InflightCall] = {}
        self._broadcasts: dict[str, Broadcast] = {}
        self._by_coalesce_key: dict[Hashable, Job] = {}

    def add(self, inflight: InflightCall) -> None:
        """Start tracking a call until it has a row."""
        self._calls[inflight.job.id] = inflight

    def drop(self, inflight: InflightCall) -> None:
        """Stop tracking a call. Does nothing for one that is not tracked."""
        self._calls.pop(inflight.job.id, None)

    def share(self, job_id: str, broadcast: Broadcast) -> None:
        """Let callers of this process that join the job read `broadcast`."""
        self._broadcasts[job_id] = broadcast

    def shared(self, job_id: str) -> Broadcast | None:
        """Return the broadcast of the job, if this process serves it and it still has readers."""
        broadcast = self._broadcasts.get(job_id)
        return None if broadcast is None or broadcast.is_abandoned else broadcast

    def unshare(self, job_id: str) -> None:
        """Stop sharing the job's broadcast."""
        self._broadcasts.pop(job_id, None)

    def coalesce(self, key: Hashable, job: Job) -> None:
        """Let callers of this process with an equal request find `job`, as long as it is shared."""
        self._by_coalesce_key[key] = job

    def stop_coalescing(self, key: Hashable, job: Job) -> None:
        """Undo `coalesce`, unless another job has replaced `job`."""
        if self._by_coalesce_key.get(key) is job:
            del self._by_coalesce_key[key]

    def find_coalesced(self, key: Hashable) -> Job | None:
        """Return the job that serves an equal request, if any."""
        job = self._by_coalesce_key.get(key)
        return None if job is None or self.shared(job.id) is None else job

    async def persist_slow(self, persist: Callable[[InflightCall], None], *, after_seconds: float) -> None:
        """Call `persist` for each call that runs for `after_seconds` without a row. Never returns."""
        while True:
            await asyncio.sleep(after_seconds / 10)
            threshold = asyncio.get_running_loop().time() - after_seconds
            for inflight in [inflight for inflight in self._calls.values() if inflight.started_at <= threshold]:
                self.drop(inflight)
                persist(inflight)
