"""Pages and counts of jobs, from both tables that have them: `jobs`, and the `calls` that ended at once."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.filters import JobFilter, Page, page_length
from signoff.core.job import STATUSES, TERMINAL, Job
from signoff.stores.calls import job_of_call
from signoff.stores.schema import calls, jobs
from signoff.stores.transitions import EVERY_COLUMN, job_of

T = TypeVar("T")
MAX_IDS_PER_STATEMENT = 1000
MAX_READS = 3


def read_page(conn: Connection, filters: JobFilter) -> Page[Job]:
    """Return a page of jobs, after reading only those that are on it.

    Between its statements, a job can end or be deleted, unless `conn` reads a snapshot. Then read the page again, as a
    page with fewer jobs than its limit looks like the last one.
    """
    page = Page[Job]()
    for _ in range(MAX_READS):
        matching = conn.execute(page_statement(filters)).scalars().all()
        ids = matching[: page_length(sizes_of(conn, matching), filters.max_bytes)]
        by_id = jobs_by_id(conn, ids)
        jobs_in_order = (by_id[job_id] for job_id in ids if job_id in by_id)
        page = Page(
            (job for job in jobs_in_order if filters.status in {None, job.status}),
            may_continue=len(ids) < len(matching) or 0 < len(matching) == filters.limit,
        )
        if len(page) == len(ids):
            break
    return page


def sizes_of(conn: Connection, ids: Sequence[str]) -> Iterator[int]:
    """Yield the bytes of jobs and calls; 0 for one that was deleted."""
    for chunk in chunked(ids):
        sizes = {row.id: row.size for query in _SIZES for row in conn.execute(query, {"ids": chunk})}
        yield from (sizes.get(job_id, 0) for job_id in chunk)


def jobs_by_id(conn: Connection, ids: Sequence[str]) -> dict[str, Job]:
    """Return the jobs and calls with these ids, as far as they exist. There may be any number of ids."""
    by_id = dict[str, Job]()
    for chunk in chunked(ids):
        by_id |= {row.id: job_of(row) for row in conn.execute(_JOBS, {"ids": chunk})}
        by_id |= {row.id: job_of_call(row) for row in conn.execute(_CALLS, {"ids": chunk})}
    return by_id


def page_statement(filters: JobFilter) -> sa.Select[Any]:
    """Return a query for the ids of a page of jobs, in order."""
    matching = _matching(filters, at_most=filters.offset + filters.limit)
    return sa.select(matching.c.id).order_by(_order(matching.c.id, filters)).offset(filters.offset).limit(filters.limit)


def count_statement(filters: JobFilter, at_most: int) -> sa.Select[Any]:
    """Return a query for the number of jobs that match, which stops counting at `at_most`."""
    some = sa.select(_matching(filters, at_most=at_most).c.id).limit(at_most).subquery()
    return sa.select(sa.func.count()).select_from(some)


def chunked(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield `items` in chunks whose parameters fit into one statement."""
    return (items[start : start + MAX_IDS_PER_STATEMENT] for start in range(0, len(items), MAX_IDS_PER_STATEMENT))


_IDS = sa.bindparam("ids", type_=sa.Text, expanding=True)
_JOBS = sa.select(*EVERY_COLUMN).where(jobs.c.id.in_(_IDS))
_CALLS = sa.select(*calls.c).where(calls.c.id.in_(_IDS))
_JOB_SIZE: ColumnElement[int] = sum(
    (sa.func.coalesce(sa.func.length(column), 0) for column in (jobs.c.body, jobs.c.metadata, jobs.c.response)),
    sa.literal(0),
)
_SIZES = (
    sa.select(jobs.c.id, _JOB_SIZE.label("size")).where(jobs.c.id.in_(_IDS)),
    sa.select(calls.c.id, sa.func.length(calls.c.data).label("size")).where(calls.c.id.in_(_IDS)),
)


def _backlog_statement() -> sa.Select[int, int]:
    """Return a query for the number and the bytes of a user's unfinished jobs, which reads at most `limit` of each."""
    unfinished = [
        sa.select(_JOB_SIZE.label("size"))
        .where(
            jobs.c.user_id == sa.bindparam("user", type_=sa.Integer),
            jobs.c.status == sa.literal_column(f"'{status}'"),
            jobs.c.copy_of.is_(None),
        )
        .limit(sa.bindparam("limit", type_=sa.Integer))
        .subquery()
        for status in STATUSES
        if status not in TERMINAL
    ]
    sizes = sa.union_all(*(sa.select(each.c.size) for each in unfinished)).subquery()
    total = sa.cast(sa.func.coalesce(sa.func.sum(sizes.c.size), 0), sa.BigInteger)
    return sa.select(sa.func.count(), total).select_from(sizes)


BACKLOG = _backlog_statement()


def _matching(filters: JobFilter, at_most: int) -> sa.Subquery:
    """Return the ids of matching jobs: of each range of an index, the first `at_most` in the order of the page.

    No more of a range can be on the page. So each is read in order from an index, and however many follow cost nothing.
    """
    ranges = [sa.select(jobs.c.id).where(*_job_conditions(filters))]
    ranges += [sa.select(calls.c.id).where(*conditions) for conditions in _call_conditions(filters)]
    first = [query.order_by(_order(query.selected_columns.id, filters)).limit(at_most).subquery() for query in ranges]
    return sa.union_all(*(sa.select(ids.c.id) for ids in first)).subquery()


def _order(column: ColumnElement[str], filters: JobFilter) -> ColumnElement[str]:
    return column.desc() if filters.newest_first else column.asc()


def _job_conditions(filters: JobFilter) -> list[ColumnElement[bool]]:
    conditions = _shared_conditions(jobs, filters)
    if filters.user_id is not None and not filters.with_copies:  # a copy is none of its owner's jobs
        conditions.append(jobs.c.copy_of.is_(None))
    if filters.status is not None:
        conditions.append(jobs.c.status == filters.status)
    if not filters.with_steps:
        conditions.append(jobs.c.parent_id.is_(None))
    if filters.fingerprint is not None:
        conditions.append(jobs.c.fingerprint == filters.fingerprint)
    return conditions


def _call_conditions(filters: JobFilter) -> list[list[ColumnElement[bool]]]:
    """Return the conditions of each range of calls. Of one user's calls, each status is a range of its own."""
    if filters.fingerprint is not None or filters.status not in {None, *TERMINAL}:
        return []
    shared = _shared_conditions(calls, filters)
    if filters.status is not None:
        return [[*shared, calls.c.status == filters.status]]
    if filters.user_id is None:
        return [shared]
    return [[*shared, calls.c.status == status] for status in STATUSES if status in TERMINAL]


def _shared_conditions(table: sa.Table, filters: JobFilter) -> list[ColumnElement[bool]]:
    conditions = list[ColumnElement[bool]]()
    if filters.user_id is not None:
        conditions.append(table.c.user_id == filters.user_id)
    if filters.upstream_object_id is not None:
        conditions.append(table.c.upstream_object_id == filters.upstream_object_id)
    if filters.after_id is not None:
        conditions.append(table.c.id < filters.after_id if filters.newest_first else table.c.id > filters.after_id)
    return conditions
