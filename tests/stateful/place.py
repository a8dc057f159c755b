"""Store on a database with a controlled clock, with synchronous methods for rules of hypothesis."""

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
from signoff.core.reviews.receipt import VerdictReceipt, parse_line
from signoff.records import ReceiptFilter
from signoff.stores import schema
from signoff.stores.calls import event_of_call
from signoff.stores.receipts_schema import receipt_salts
from signoff.stores.sql import SqlStore
from stateful.model import StoreContent
from support.stores import VAULT

T = TypeVar("T")
DAY = 24 * 3600 * 1_000_000
# A day divided by a power of two, so that Julian days represent ticks without rounding.
TICK = DAY // 2048
TICK_SECONDS = TICK / 1_000_000
START = 20_000 * DAY
EVERYTHING = JobFilter(limit=10_000)
TABLES = (schema.jobs, schema.calls, schema.used_keys, schema.events, schema.votes, schema.decisions, schema.deliveries)

# PostgreSQL finds this function before its own `clock_timestamp`, so the store needs no change.
_STOPPED_CLOCK = f"""
CREATE TABLE clock AS SELECT CAST({START} AS BIGINT) AS now;
CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
    AS 'SELECT to_timestamp(now / 1000000.0) FROM public.clock';
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
END $$
"""


class ControlledDatabase:
    """An open store on the empty database at `url`, and its clock in microseconds."""

    def __init__(self, url: str) -> None:
        self.now = START
        self._first_receipt = 0
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.is_postgres = url.startswith("postgresql")
        if self.is_postgres:
            self.run(_execute(url, _STOPPED_CLOCK))
        self.store = SqlStore(url, VAULT)
        if not self.is_postgres:
            self._stop_clock()
        self.run(self.store.migrate())
        self.run(self.store.start())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, and return its result."""
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Close the store."""
        self.run(self.store.close())
        self._runner.close()

    def reset(self) -> None:
        """Delete all rows except receipts, and set the clock back to the start."""
        self._first_receipt = self.run(self.store.receipts.head()).count
        self.set_clock(START, *(sa.delete(table) for table in (*TABLES, receipt_salts)))

    def set_clock(self, now: int, *statements: sa.Executable) -> None:
        """Set the clock, and execute statements directly on the database."""
        self.now = now
        clock_update = [sa.text(f"UPDATE clock SET now = {now}")] if self.is_postgres else []
        self.run(self._execute_all([*statements, *clock_update]))

    async def _execute_all(self, statements: list[sa.Executable]) -> None:
        await self.store._database.write(lambda tx: [tx.conn.execute(statement) and None for statement in statements])

    def _stop_clock(self) -> None:
        """Replace the function of SQLite from which the store takes the time."""
        database: Any = self.store._database

        def connected(connection: Any, _record: Any) -> None:
            connection.create_function("julianday", 1, lambda _: self.now / DAY + 2440587.5)

        for engine in (database._writing, database._reading):
            event.listen(engine, "connect", connected)

    def read_receipts(self) -> list[VerdictReceipt]:
        """Return the receipts of decisions since the last reset."""
        filters = ReceiptFilter(after_seq=self._first_receipt, limit=10_000)
        parsed = [parse_line(row.line)[0] for row in self.run(self.store.receipts.page(filters))]
        return [receipt for receipt in parsed if isinstance(receipt, VerdictReceipt)]

    def read_content(self) -> tuple[StoreContent, list[Event]]:
        """Return the content of the database, and its events with their data."""
        return self.run(self._read_content())

    async def _read_content(self) -> tuple[StoreContent, list[Event]]:
        jobs = await self.store.jobs.list(EVERYTHING)
        rest = await self.store._database.read(lambda conn, _: [conn.execute(sa.select(t)).all() for t in TABLES[1:]])
        calls, keys, events, votes, decisions, deliveries = rest
        all_events = [*(Event(**row._asdict()) for row in events), *map(event_of_call, calls)]
        content = StoreContent(
            jobs={job.id: job for job in jobs},
            keys={(row.user_id, row.key): row.job_id for row in keys},
            events={(event.job_id, event.seq): (event.verb, event.actor, event.at) for event in all_events},
            votes={(row.job_id, row.round, row.reviewer): (row.verdict, row.at) for row in votes},
            decisions={(row.job_id, row.round): (row.decision, row.at) for row in decisions},
            deliveries={row.id: Delivery(**row._asdict()) for row in deliveries},
        )
        return content, all_events


async def _execute(url: str, statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()
