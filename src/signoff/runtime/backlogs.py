"""Bounds on the unfinished jobs of each user, from an estimate that costs nearly nothing for each submission."""

import asyncio
from types import TracebackType
from typing import Self

from signoff.errors import BacklogFull
from signoff.store import Jobs

FRESH_SECONDS = 1.0
# A count of many jobs takes a while; counting takes at most this share of the time.
COUNTING_SHARE = 0.02
RETRY_SECONDS = 5.0
MAX_USERS = 10_000


class Backlogs:
    """The backlogs of users, as far as this process knows.

    The jobs of a user are counted again after FRESH_SECONDS. Until then, each submission to this process is added, and
    no end is subtracted; so the estimate is rather too high, except that submissions to other processes are missing.
    """

    def __init__(self, jobs: Jobs, *, max_jobs: int, max_bytes: int) -> None:
        self._jobs = jobs
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._users = dict[int, _UserBacklog]()

    async def reserve(self, user_id: int, size_bytes: int) -> "BacklogSlot":
        """Reserve a slot for one job of `size_bytes`; the caller stores the job within the slot's context.

        Raises BacklogFull.
        """
        backlog = self._users.get(user_id) or self._add(user_id)
        now = asyncio.get_running_loop().time()
        # While one submission counts the jobs, others use the former estimate, if there is one.
        if now >= backlog.expires_at and not (backlog.is_known and backlog.lock.locked()):
            async with backlog.lock:
                if now >= backlog.expires_at:
                    await self._count(user_id, backlog)
        if backlog.jobs >= self._max_jobs:
            raise BacklogFull(
                f"You have {self._max_jobs} jobs or more that have not ended (setting `max_waiting_jobs`); "
                "wait for some to end, or cancel some.",
                retry_after_seconds=RETRY_SECONDS,
            )
        if backlog.size_bytes + size_bytes > self._max_bytes:
            raise BacklogFull(
                f"Your jobs that have not ended must have at most {self._max_bytes} bytes together (setting "
                "`max_waiting_bytes`); wait for some to end, or cancel some.",
                retry_after_seconds=RETRY_SECONDS,
            )
        return BacklogSlot(backlog, size_bytes)

    def _add(self, user_id: int) -> "_UserBacklog":
        if len(self._users) >= MAX_USERS:
            self._users = {user: backlog for user, backlog in self._users.items() if backlog.is_in_use}
        return self._users.setdefault(user_id, _UserBacklog())

    async def _count(self, user_id: int, backlog: "_UserBacklog") -> None:
        """Count the user's jobs. A job that is being stored meanwhile may be counted twice, and is never left out."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        jobs_before, bytes_before = backlog.jobs - backlog.storing_jobs, backlog.size_bytes - backlog.storing_bytes
        stored = await self._jobs.backlog(user_id, at_most=self._max_jobs)
        backlog.jobs += stored.jobs - jobs_before
        backlog.size_bytes += stored.size_bytes - bytes_before
        backlog.is_known = True
        ended_at = loop.time()
        backlog.expires_at = ended_at + max(FRESH_SECONDS, (ended_at - started_at) / COUNTING_SHARE)


class _UserBacklog:
    """The estimate of one user's backlog."""

    def __init__(self) -> None:
        self.jobs = 0
        self.size_bytes = 0
        self.storing_jobs = 0
        self.storing_bytes = 0
        self.is_known = False
        self.expires_at = 0.0
        self.lock = asyncio.Lock()

    @property
    def is_in_use(self) -> bool:
        """True while a job is being stored or the jobs are being counted."""
        return self.storing_jobs > 0 or self.lock.locked()


class BacklogSlot:
    """A place in the backlog of a user; the context in which its job is stored."""

    def __init__(self, backlog: _UserBacklog, size_bytes: int) -> None:
        self._backlog = backlog
        self._size_bytes = size_bytes
        backlog.jobs += 1
        backlog.size_bytes += size_bytes
        backlog.storing_jobs += 1
        backlog.storing_bytes += size_bytes

    def __enter__(self) -> Self:
        """Begin to store the job."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Record that the job was stored, or could not be."""
        self._backlog.storing_jobs -= 1
        self._backlog.storing_bytes -= self._size_bytes
