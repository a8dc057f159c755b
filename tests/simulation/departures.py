"""In-memory departures: jobs whose caller left before the answer came."""

from __future__ import annotations

from signoff.core.job import Job
from signoff.stores.departures import LIFETIME_US
from signoff.stores.schema import departures
from signoff.stores.transitions import SECOND
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
            tx.add_missing(departures, {"job_id": job.id, "left_at": tx.now})

        await self._connection.send(add, writes=True)

    async def take(self, job: Job, *, ended_within_seconds: float) -> Job | None:
        def take(tx: Tx) -> Job | None:
            since = tx.now - round(ended_within_seconds * SECOND)
            departed = [self._tables.jobs[name] for name in self._tables.departures if name in self._tables.jobs]
            equal = [each for each in departed if _key_of(each) == _key_of(job)]
            recent = [each for each in equal if not each.is_terminal or each.updated_at >= since]
            newest = max(recent, key=lambda each: each.id, default=None)
            if newest is not None:
                tx.returned.append(newest.id)
            return newest

        return await self._connection.send(take, writes=True)


def _key_of(job: Job) -> tuple[object, ...]:
    return job.user_id, job.token_id, job.fingerprint
