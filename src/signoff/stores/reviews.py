"""Held answers in the order of the desk, votes, decisions and bulk decisions, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.filters import Page, page_length
from signoff.core.job import Job, Vote
from signoff.core.reviews.bulk import Bulk, advanced
from signoff.core.reviews.queues import DecisionRecord, NextReview, ReviewFilter, VoteRecord
from signoff.core.times import DAY_US, SECOND_US
from signoff.stores.database import Database
from signoff.stores.job_pages import chunked, jobs_by_id, sizes_of
from signoff.stores.next_review import open_next
from signoff.stores.reviews_schema import review_bulks
from signoff.stores.schema import WAITS_FOR_REVIEW, decisions, jobs, review_queue_name, review_rank, votes
from signoff.stores.transaction import Tx

BULK_LIFETIME_US = DAY_US


class SqlReviews:
    """Held answers in a SQL database; see `reviews.Reviews`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open_next(self, query: NextReview, *, actor: str, lease_seconds: float) -> Job | None:
        """See `reviews.Reviews`."""
        return await self._database.write_lease(lambda tx: open_next(tx, query, actor, lease_seconds))

    async def list(self, filters: ReviewFilter) -> Page[Job]:
        """See `reviews.Reviews`."""
        return await self._database.read(lambda conn, now: _read_page(conn, filters, now()))

    async def held_queues(self, limit: int) -> list[str]:
        """See `reviews.Reviews`."""
        rows = await self._database.read(lambda conn, _: conn.execute(_HELD_QUEUES, {"limit": limit}).scalars().all())
        return [name for name in rows if name is not None]

    async def depth(self, queue: str, *, at_most: int) -> tuple[int, int | None]:
        """See `reviews.Reviews`."""
        parameters = {"queue": queue, "limit": at_most}

        def read(conn: Connection, _: object) -> tuple[int, int | None]:
            return conn.execute(_DEPTH, parameters).scalar_one(), conn.execute(_OLDEST, parameters).scalar_one()

        return await self._database.read(read)

    async def votes(self, job_id: str, review_round: int) -> list[Vote]:
        """See `reviews.Reviews`."""
        query = sa.select(votes.c.decision, votes.c.at).where(
            votes.c.job_id == job_id, votes.c.round == review_round, votes.c.decision.is_not(None)
        )
        query = query.order_by(votes.c.at, votes.c.reviewer)
        rows = await self._database.read(lambda conn, _: conn.execute(query).all())
        return [Vote(decision=row.decision, at=row.at) for row in rows]

    async def blind_votes(self, limit: int) -> list[VoteRecord]:
        """See `reviews.Reviews`."""
        is_blind = sa.text("votes.decision IS NOT NULL")
        query = sa.select(*_VERDICT).where(is_blind).order_by(votes.c.at.desc()).limit(limit)
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [VoteRecord(**row) for row in rows]

    async def verdicts_of(self, reviewer: str, *, after: tuple[int, str] | None, limit: int) -> list[VoteRecord]:
        """See `reviews.Reviews`."""
        query = sa.select(*_VERDICT).where(votes.c.reviewer == reviewer)
        if after is not None:
            query = query.where(sa.tuple_(votes.c.at, votes.c.job_id) < sa.tuple_(*map(sa.literal, after)))
        query = query.order_by(votes.c.at.desc(), votes.c.job_id.desc()).limit(limit)
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [VoteRecord(**row) for row in rows]

    async def decisions(self, job_ids: Sequence[str]) -> list[DecisionRecord]:
        """See `reviews.Reviews`."""
        query = sa.select(*decisions.c).where(decisions.c.job_id.in_(sa.bindparam("jobs", expanding=True)))

        def read(conn: Connection, _: object) -> list[DecisionRecord]:
            rows = [row for ids in chunked(job_ids) for row in conn.execute(query, {"jobs": ids}).mappings()]
            return sorted((DecisionRecord(**row) for row in rows), key=lambda record: (record.job_id, record.round))

        return await self._database.read(read)

    async def add_bulk(self, bulk: Bulk) -> None:
        """See `reviews.Reviews`."""

        def add(tx: Tx) -> None:
            old = sa.delete(review_bulks).where(review_bulks.c.created_at < tx.now - BULK_LIFETIME_US)
            tx.conn.execute(old)
            tx.conn.execute(sa.insert(review_bulks).values(id=bulk.id, bulk=bulk, created_at=tx.now))

        await self._database.write(add)

    async def bulk(self, bulk_id: str) -> Bulk | None:
        """See `reviews.Reviews`."""
        query = sa.select(review_bulks.c.bulk).where(review_bulks.c.id == bulk_id)
        return await self._database.read(lambda conn, _: conn.execute(query).scalar_one_or_none())

    async def advance_bulk(self, bulk: Bulk) -> Bulk:
        """See `reviews.Reviews`."""
        is_this = review_bulks.c.id == bulk.id
        query = sa.select(review_bulks.c.bulk).where(is_this).with_for_update()

        def advance(tx: Tx) -> Bulk:
            stored: Bulk | None = tx.conn.execute(query).scalar_one_or_none()
            changed = bulk if stored is None else advanced(stored, bulk)
            tx.conn.execute(sa.update(review_bulks).where(is_this).values(bulk=changed))
            return changed

        return await self._database.write(advance)


def _queue_is(name: str) -> ColumnElement[bool]:
    return review_queue_name == sa.bindparam(name, type_=sa.Text)


def _read_page(conn: Connection, filters: ReviewFilter, now: int) -> Page[Job]:
    """Return a page of held answers, after reading only those that are on it."""
    matching = list(conn.execute(_page_statement(filters, now)).scalars())
    ids = matching[: page_length(sizes_of(conn, matching), filters.max_bytes)]
    by_id = jobs_by_id(conn, ids)
    return Page(
        (by_id[job_id] for job_id in ids if job_id in by_id),
        may_continue=len(ids) < len(matching) or 0 < len(matching) == filters.limit,
    )


def _page_statement(filters: ReviewFilter, now: int) -> sa.Select[Any]:
    """Return a query for ids in order. What follows a cursor in a queue is two ranges: its place, and later places."""
    conditions = list[ColumnElement[bool]]()
    if filters.target is not None:
        conditions.append(jobs.c.target == filters.target)
    if filters.assignee is not None:
        conditions.append(jobs.c.assignee == filters.assignee)
    place: ColumnElement[int] = review_rank if filters.order == "urgent" else jobs.c.held_at
    is_descending = filters.order == "newest"
    # Expressions filter a walk in order. By the column alone, SQLite would take another index, and sort what it finds.
    in_order, old = [place, jobs.c.id], _old(filters, now, jobs.c.held_at + 0)
    later = old if filters.order == "urgent" else _old(filters, now, jobs.c.held_at)
    ranges: list[tuple[list[ColumnElement[bool]], list[ColumnElement[Any]]]] = [(later, in_order)]
    if filters.after is not None:
        last, job_id, id_text = sa.literal(filters.after[0], sa.BigInteger), filters.after[1], jobs.c.id.concat("")
        ranges = [([place == last, id_text < job_id, *old], in_order[1:]), ([place < last, *later], in_order)]
        if not is_descending:
            ranges = [([place == last, id_text > job_id, *old], in_order[1:]), ([place > last, *later], in_order)]
    first = [
        sa.select(place.label("place"), jobs.c.id)
        .where(WAITS_FOR_REVIEW, review_queue_name == queue, *part, *conditions)
        .order_by(*_ordered(*columns, is_descending=is_descending))
        .limit(filters.limit)
        .subquery()
        for queue in filters.queues
        for part, columns in ranges
    ]
    every = sa.union_all(*(sa.select(*each.c) for each in first)).subquery()
    order = _ordered(every.c.place, every.c.id, is_descending=is_descending)
    return sa.select(every.c.id).order_by(*order).limit(filters.limit)


def _old(filters: ReviewFilter, now: int, held_at: ColumnElement[int]) -> list[ColumnElement[bool]]:
    """Return the condition that an answer was held for `min_age_seconds`; an empty list if that is None."""
    return [] if filters.min_age_seconds is None else [held_at <= now - round(filters.min_age_seconds * SECOND_US)]


def _ordered(*columns: ColumnElement[Any], is_descending: bool) -> list[ColumnElement[Any]]:
    return [column.desc() if is_descending else column.asc() for column in columns]


def _queues_statement() -> sa.Select[Any]:
    """Return the query for names of queues: it reads one entry of the index for each, and not each job."""
    least = sa.select(sa.func.min(review_queue_name)).where(WAITS_FOR_REVIEW)
    names = sa.select(least.scalar_subquery().label("name")).cte("names", recursive=True)
    following = least.where(names.c.name < review_queue_name).scalar_subquery()
    names = names.union_all(sa.select(following).where(names.c.name.is_not(None)))
    return sa.select(names.c.name).where(names.c.name.is_not(None)).limit(sa.bindparam("limit", type_=sa.Integer))


_VERDICT = tuple(votes.c[name] for name in VoteRecord.__struct_fields__)
_HELD_QUEUES = _queues_statement()
_SOME = (
    sa.select(jobs.c.id)
    .where(WAITS_FOR_REVIEW, _queue_is("queue"))
    .limit(sa.bindparam("limit", type_=sa.Integer))
    .subquery()
)
_DEPTH = sa.select(sa.func.count()).select_from(_SOME)
_OLDEST = sa.select(sa.func.min(jobs.c.held_at)).where(WAITS_FOR_REVIEW, _queue_is("queue"))
