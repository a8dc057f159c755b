"""A database whose clock stands still until it is moved, and its store, for rules that do not await."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import asyncpg
import sqlalchemy as sa
import uvloop
from sqlalchemy import event

from signoff.core.delivery import Delivery
from signoff.core.filters import JobFilter
from signoff.core.job import Event
from signoff.stores import schema
from signoff.stores.sql import SqlStore
from stateful.model import Stand

T = TypeVar("T")
DAY = 24 * 3600 * 1_000_000
# A power of two in a day, in whole microseconds: Julian days count such ticks without any rounding.
TICK = DAY // 2048
TICK_SECONDS = TICK / 1_000_000
BEGIN = 20_000 * DAY
EVERYTHING = JobFilter(limit=10_000)
EMPTIED = (schema.jobs, schema.used_keys, schema.events, schema.votes, schema.decisions, schema.deliveries)

# The server's own function is found after ours: nothing of the store is changed.
_STOPPED_CLOCK = f"""
CREATE TABLE clock AS SELECT CAST({BEGIN} AS BIGINT) AS now;
CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
    AS 'SELECT to_timestamp(now / 1000000.0) FROM public.clock';
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
END $$
"""


class Place:
    """An open store on the empty database at `url`."""

    def __init__(self, url: str) -> None:
        self.now = BEGIN
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.on_server = url.startswith("postgresql")
        if self.on_server:
            self.run(_execute(url, _STOPPED_CLOCK))
        self.store = SqlStore(url)
        if not self.on_server:
            self._stop_clock()
        self.run(self.store.migrate())
        self.run(self.store.start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of `work`."""
        return self._runner.run(work)

    def close(self) -> None:
        """Closes the store."""
        self.run(self.store.close())
        self._runner.close()

    def empty(self) -> None:
        """Forgets everything, and turns the clock back."""
        self.set(BEGIN, *(sa.delete(table) for table in EMPTIED))

    def set(self, now: int, *statements: sa.Executable) -> None:
        """Moves the clock, and does something behind the store's back."""
        self.now = now
        moved = [sa.text(f"UPDATE clock SET now = {now}")] if self.on_server else []
        self.run(self._all([*statements, *moved]))

    async def _all(self, statements: list[sa.Executable]) -> None:
        await self.store._database.write(lambda tx: [tx.conn.execute(each) and None for each in statements])

    def _stop_clock(self) -> None:
        """SQLite lets every connection have its own functions."""
        database: Any = self.store._database

        def connected(connection: Any, _record: Any) -> None:
            connection.create_function("julianday", 1, lambda _: self.now / DAY + 2440587.5)

        for engine in (database._writing, database._reading):
            event.listen(engine, "connect", connected)

    def look(self) -> tuple[Stand, list[Event]]:
        """All that stands in the database, and its events with what they tell."""
        return self.run(self._look())

    async def _look(self) -> tuple[Stand, list[Event]]:
        jobs = await self.store.jobs.list(EVERYTHING)
        rest = await self.store._database.read(lambda conn, _: [conn.execute(sa.select(t)).all() for t in EMPTIED[1:]])
        keys, events, votes, decisions, deliveries = rest
        stand = Stand(
            jobs={job.id: job for job in jobs},
            keys={(row.user_id, row.key): row.job_id for row in keys},
            events={(row.job_id, row.seq): (row.verb, row.actor, row.at) for row in events},
            votes={(row.job_id, row.round, row.reviewer): (row.verdict, row.at) for row in votes},
            decisions={(row.job_id, row.round): (row.decision, row.at) for row in decisions},
            deliveries={row.id: Delivery(**row._asdict()) for row in deliveries},
        )
        return stand, [Event(**row._asdict()) for row in events]


async def _execute(url: str, statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()
