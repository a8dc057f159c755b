"""Read access to the tables of the database, without a door."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from signoff.core.delivery import Delivery
from signoff.core.job import Event, Job
from signoff.stores.calls import event_of_call, job_of_call
from signoff.stores.schema import calls, decisions, deliveries, events, jobs
from signoff.stores.sql import SqlStore
from signoff.stores.transitions import EVERY_COLUMN, job_of

PAGE = 2000
CommitOrder = Mapping[tuple[str, int], int]
"""A number for each event, by job and sequence number; it is larger for events that were committed later."""


class StoredJob(msgspec.Struct, frozen=True):
    """A job with its events, decisions and deliveries."""

    job: Job
    events: list[Event]
    decisions: dict[int, Any]
    """By round number."""
    deliveries: list[Delivery]


class Backlog(msgspec.Struct, frozen=True):
    """The numbers of unfinished jobs by status, and of deliveries that are due."""

    bot: int
    human: int
    due: int

    @property
    def is_empty(self) -> bool:
        """Return True if all jobs have ended and all deliveries are done or failed."""
        return not self.steps_left

    @property
    def steps_left(self) -> int:
        """Return a number that each end of a job or delivery lowers; the end of a job may begin two deliveries."""
        return 3 * (self.bot + self.human) + self.due


class Tables:
    """Read-only access to a database."""

    def __init__(self, url: str) -> None:
        self._store = SqlStore(url)
        self._is_sqlite = url.startswith("sqlite:")
        self._is_open = self._is_sqlite  # the processes make the file
        self._opening = asyncio.Lock()

    async def rows(self, query: sa.Select[Any] | sa.TextClause) -> list[Any]:
        """Return the rows of a query."""
        async with self._opening:
            if not self._is_open:
                await self._store._database.start()
                self._is_open = True
        return await self._store._database.read(lambda conn, _: list(conn.execute(query).all()))

    async def leased_jobs(self, actor: str | None = None) -> list[str]:
        """Return the ids of the jobs that `actor`, or any worker, has claimed."""
        claimed = (events.c.job_id == jobs.c.id) & (events.c.seq == jobs.c.seq) & (events.c.verb == "claim")
        query = sa.select(jobs.c.id).select_from(jobs.join(events, claimed))
        query = query.where(jobs.c.status == "bot", jobs.c.lease.is_not(None))
        return [row.id for row in await self.rows(query if actor is None else query.where(events.c.actor == actor))]

    async def waiting(self, limit: int = 100) -> list[str]:
        """Return the ids of up to `limit` jobs that are not answered yet."""
        return [row.id for row in await self.rows(sa.select(jobs.c.id).where(jobs.c.status == "bot").limit(limit))]

    async def lapsed(self, job_ids: Iterable[str], actor: str) -> list[str]:
        """Return the ids of the jobs on which a lease of `actor` has run out."""
        lapsed = list[str]()
        for job_id in job_ids:
            rows_of_job = await self.rows(sa.select(*events.c).where(events.c.job_id == job_id).order_by(events.c.seq))
            pairs = itertools.pairwise(rows_of_job)
            if any(
                (event.verb, event.actor, next_event.verb) == ("claim", actor, "lapse") for event, next_event in pairs
            ):
                lapsed.append(job_id)
        return lapsed

    async def backlog(self) -> Backlog:
        """Count the unfinished jobs and deliveries."""
        bot, human = [sa.select(sa.func.count()).where(jobs.c.status == status) for status in ("bot", "human")]
        due = sa.select(sa.func.count()).where(deliveries.c.state == "due")
        [row] = await self.rows(sa.select(bot.scalar_subquery(), human.scalar_subquery(), due.scalar_subquery()))
        return Backlog(*row)

    async def pages(self) -> AsyncIterator[list[StoredJob]]:
        """Yield all jobs in pages: those of the table of jobs, then the calls."""
        last = ""
        while True:
            query = sa.select(*EVERY_COLUMN).where(jobs.c.id > last).order_by(jobs.c.id).limit(PAGE)
            page = [job_of(row) for row in await self.rows(query)]
            if not page:
                break
            yield await self._with_history(page, last)
            last = page[-1].id
        last = ""
        while True:
            logged = await self.rows(sa.select(*calls.c).where(calls.c.id > last).order_by(calls.c.id).limit(PAGE))
            if not logged:
                return
            yield [StoredJob(job_of_call(row), [event_of_call(row)], {}, []) for row in logged]
            last = logged[-1].id

    async def commit_order(self, job_ids: Sequence[str]) -> CommitOrder:
        """Return the order in which the events of these jobs were committed.

        PostgreSQL must run with `track_commit_timestamp`. SQLite has one writer, so its rows are in that order.
        """
        committed_at = "extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000"
        moment = sa.literal_column("rowid" if self._is_sqlite else committed_at)
        order = dict[tuple[str, int], int]()
        for start in range(0, len(job_ids), PAGE):
            is_of_page = events.c.job_id.in_(job_ids[start : start + PAGE])
            rows = await self.rows(sa.select(events.c.job_id, events.c.seq, moment).where(is_of_page))
            order |= {(job_id, seq): int(at) for job_id, seq, at in rows}
        return order

    async def _with_history(self, page: list[Job], last: str) -> list[StoredJob]:
        def of_page(table: sa.Table) -> sa.Select[Any]:
            return sa.select(*table.c).where(table.c.job_id > last, table.c.job_id <= page[-1].id)

        stored = {job.id: StoredJob(job, [], {}, []) for job in page}
        for row in await self.rows(of_page(events).order_by(events.c.job_id, events.c.seq)):
            if row.job_id in stored:
                stored[row.job_id].events.append(Event(**row._mapping))
        for row in await self.rows(of_page(decisions)):
            if row.job_id in stored:
                stored[row.job_id].decisions[row.round] = row.decision
        for row in await self.rows(of_page(deliveries)):
            if row.job_id in stored:
                stored[row.job_id].deliveries.append(Delivery(**row._mapping))
        return list(stored.values())

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()
