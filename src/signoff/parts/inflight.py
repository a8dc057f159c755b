"""Waiting calls: those that are not written down yet, and those that several callers wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from signoff.core.job import Job
from signoff.parts.shared import Shared


class Flight:
    """One waiting call: its job, who asked, the task that serves it, and the writing of its row."""

    def __init__(self, job: Job, *, actor: str) -> None:
        self.job = job
        self.actor = actor
        self.began_at = asyncio.get_running_loop().time()  # the wall clock may be set
        self.over = False
        self.is_recorded = False
        self.filing: asyncio.Task[Job] | None = None
        self.task: asyncio.Task[object] | None = None
        self.lost = False

    def lose(self) -> None:
        """The lease is gone: the job was cancelled, or given up for dead. Stops the serving task."""
        self.lost = True
        if self.task is not None:
            self.task.cancel()


class InFlight:
    """The calls of this process that nobody has written down yet, oldest first; and those that have several callers."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}
        self._shared: dict[str, Shared] = {}

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

    async def file_the_slow(self, file: Callable[[Flight], Awaitable[None]], *, after_seconds: float) -> None:
        """Calls `file` for each one that has been running for `after_seconds`, for ever."""
        while True:
            await asyncio.sleep(after_seconds / 10)
            late = asyncio.get_running_loop().time() - after_seconds
            for flight in [flight for flight in self._flights.values() if flight.began_at <= late]:
                self.drop(flight)
                await file(flight)
