"""In-memory departures: jobs whose caller left before the answer came, or leaves unless it is renewed."""

from __future__ import annotations

from collections.abc import Sequence

from signoff.core.job import Job
from signoff.core.times import SECOND_US
from signoff.stores.departures import LIFETIME_US
from simulation.tables import Connection, Tables, Tx


class MemoryDepartures:
    """In-memory implementation of `records.Departures`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def add(self, job: Job) -> None:
        def add(tx: Tx) -> None:
            old = [name for name, left_at in self._tables.departures.items() if left_at < tx.now - LIFETIME_US]
            tx.returned += old
            tx.departures[job.id] = tx.now

        await self._connection.send(add, writes=True)

    async def renew(self, jobs: Sequence[Job], lease_seconds: float) -> None:
        def renew(tx: Tx) -> None:
            tx.departures |= {job.id: tx.now + round(lease_seconds * SECOND_US) for job in jobs}

        await self._connection.send(renew, writes=True)

    async def remove(self, job_id: str) -> None:
        await self._connection.send(lambda tx: tx.returned.append(job_id), writes=True)

    async def left_at(self, job_ids: Sequence[str]) -> dict[str, int]:
        def read(tx: Tx) -> dict[str, int]:
            times = self._tables.departures
            return {job_id: times[job_id] for job_id in job_ids if job_id in times and times[job_id] <= tx.now}

        return await self._connection.send(read, writes=False)

    async def take(self, job: Job, *, ended_within_seconds: float) -> Job | None:
        def take(tx: Tx) -> Job | None:
            since = tx.now - round(ended_within_seconds * SECOND_US)
            left = [name for name, left_at in self._tables.departures.items() if left_at <= tx.now]
            departed = [self._tables.jobs[name] for name in left if name in self._tables.jobs]
            equal = [each for each in departed if _key_of(each) == _key_of(job)]
            recent = [each for each in equal if not each.is_terminal or each.updated_at >= since]
            newest = max(recent, key=lambda each: each.id, default=None)
            if newest is not None:
                tx.returned.append(newest.id)
            return newest

        return await self._connection.send(take, writes=True)


def _key_of(job: Job) -> tuple[object, ...]:
    return job.user_id, job.token_id, job.fingerprint
