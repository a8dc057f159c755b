"""Callers of this process who wait for held answers, recorded so that others know when this process is killed."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Generator, Sequence

import structlog

from signoff.core.job import Job
from signoff.errors import Overloaded
from signoff.records import Departures
from signoff.runtime.background import Background

BATCH_SIZE = 500
log = structlog.get_logger()


class CallerLeases:
    """Leases of callers who wait on their connections; a caller whose lease has expired counts as departed."""

    def __init__(
        self, departures: Departures, background: Background, *, lease_seconds: float, heartbeat_seconds: float
    ) -> None:
        self._departures = departures
        self._background = background
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._jobs = dict[str, Job]()
        self._counts = Counter[str]()
        self._new = list[str]()
        self._has_new = asyncio.Event()

    def is_waiting(self, job_id: str) -> bool:
        """Return True if a caller of this process waits for the answer of the job."""
        return job_id in self._counts

    @contextlib.contextmanager
    def waiting(self, job: Job) -> Generator[None]:
        """Record for the duration of the block that a caller waits for the answer of `job`.

        After the block, the record is no longer renewed, and so it lapses unless it is deleted or replaced before.
        """
        self._jobs[job.id] = job
        self._counts[job.id] += 1
        self._new.append(job.id)
        self._has_new.set()
        try:
            yield
        finally:
            self._counts[job.id] -= 1
            if not self._counts[job.id]:
                del self._counts[job.id], self._jobs[job.id]

    def forget(self, job_id: str) -> None:
        """Delete the record of a job whose callers get its answer now."""
        self._background.spawn(self._remove(job_id))

    async def run(self) -> None:
        """Record new callers at once, and renew all at every heartbeat. Never returns."""
        clock = asyncio.get_running_loop().time
        renews_at = clock() + self._heartbeat_seconds
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(renews_at):
                    await self._has_new.wait()
            self._has_new.clear()
            ids, self._new = self._new, []
            if clock() >= renews_at:
                ids, renews_at = list(self._jobs), clock() + self._heartbeat_seconds
            for start in range(0, len(ids), BATCH_SIZE):
                await self._renew(ids[start : start + BATCH_SIZE])

    async def _renew(self, ids: Sequence[str]) -> None:
        """Renew the records of those who still wait. What is written later, such as a departure, overrides it."""
        jobs = [self._jobs[job_id] for job_id in dict.fromkeys(ids) if job_id in self._jobs]
        if not jobs:
            return
        try:
            await self._departures.renew(jobs, self._lease_seconds)
        except Exception as error:  # noqa: BLE001 -- the store is unavailable; the next heartbeat retries
            log.warning("caller_lease_renewal_failed", error=repr(error), leases=len(jobs))

    async def _remove(self, job_id: str) -> None:
        try:
            await self._departures.remove(job_id)
        except Overloaded as error:  # the record lapses instead
            log.warning("caller_lease_not_removed", job_id=job_id, error=repr(error))
