"""In-flight calls: those without a row in the store, and those that several callers share."""

import asyncio
from collections.abc import Callable, Hashable

from signoff.core.job import Job
from signoff.runtime.attempt import Attempt
from signoff.runtime.broadcast import Broadcast


class InflightCall:
    """Waiting call: its attempt, its actor, and the writing of its row."""

    def __init__(self, attempt: Attempt, *, actor: str) -> None:
        self.attempt = attempt
        self.actor = actor
        """Actor of the transitions of its job."""
        self.is_over = False
        """True once the outcome is being recorded: a row that is inserted later does not keep its lease."""
        self.is_recorded = False
        """True once the outcome is in the store."""
        self.writing: asyncio.Task[Job] | None = None
        """The insert of the row, if the call has one."""
        self.ending: asyncio.Task[Job | None] | None = None
        """The settling of the row, which goes on if the caller leaves."""

    @property
    def job(self) -> Job:
        """The job of the call."""
        return self.attempt.job


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
        """Call `persist` for each call that runs for `after_seconds` without a row. Never returns.

        It sleeps until the oldest call is due, and for `after_seconds` if there is none.
        """
        clock = asyncio.get_running_loop().time
        while True:
            now = clock()
            for inflight in [each for each in self._calls.values() if each.attempt.arrived_at <= now - after_seconds]:
                self.drop(inflight)
                persist(inflight)
            oldest = next(iter(self._calls.values()), None)
            began_at = now if oldest is None else oldest.attempt.arrived_at
            await asyncio.sleep(max(after_seconds / 10, began_at + after_seconds - now))
