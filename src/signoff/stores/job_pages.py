"""Pages and counts of jobs, from both tables that have them: `jobs`, and the `calls` that ended at once."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.filters import JobFilter
from signoff.core.job import STATUSES, TERMINAL, Job
from signoff.stores.calls import job_of_call
from signoff.stores.schema import calls, jobs
from signoff.stores.transitions import EVERY_COLUMN, job_of

T = TypeVar("T")
MAX_IDS_PER_STATEMENT = 1000
MAX_READS = 3


def read_page(conn: Connection, filters: JobFilter) -> list[Job]:
    """Return a page of jobs.

    Between its statements, a job can end or be deleted, unless `conn` reads a snapshot. Then read the page again, as a
    page with fewer jobs than its limit looks like the last one.
    """
    page = list[Job]()
    for _ in range(MAX_READS):
        ids = conn.execute(page_statement(filters)).scalars().all()
        by_id = dict[str, Job]()
        for batch in batches(ids):
            by_id |= {row.id: job_of(row) for row in conn.execute(_JOBS, {"ids": batch})}
            by_id |= {row.id: job_of_call(row) for row in conn.execute(_CALLS, {"ids": batch})}
        page = [by_id[job_id] for job_id in ids if job_id in by_id]
        page = [job for job in page if filters.status in {None, job.status}]
        if len(page) == len(ids):
            break
    return page


def page_statement(filters: JobFilter) -> sa.Select[Any]:
    """Return a query for the ids of a page of jobs, in order."""
    matching = _matching(filters, at_most=filters.offset + filters.limit)
    return sa.select(matching.c.id).order_by(_order(matching.c.id, filters)).offset(filters.offset).limit(filters.limit)


def count_statement(filters: JobFilter, at_most: int) -> sa.Select[Any]:
    """Return a query for the number of jobs that match, which stops counting at `at_most`."""
    some = sa.select(_matching(filters, at_most=at_most).c.id).limit(at_most).subquery()
    return sa.select(sa.func.count()).select_from(some)


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split `items` into batches whose parameters fit into one statement."""
    return (items[start : start + MAX_IDS_PER_STATEMENT] for start in range(0, len(items), MAX_IDS_PER_STATEMENT))


_IDS = sa.bindparam("ids", type_=sa.Text, expanding=True)
_JOBS = sa.select(*EVERY_COLUMN).where(jobs.c.id.in_(_IDS))
_CALLS = sa.select(*calls.c).where(calls.c.id.in_(_IDS))


def _backlog_statement() -> sa.Select[int, int]:
    """Return a query for the number and the bytes of a user's unfinished jobs, which reads at most `limit` of each."""
    columns = (jobs.c.body, jobs.c.metadata, jobs.c.response)
    size = sum((sa.func.coalesce(sa.func.length(column), 0) for column in columns), sa.literal(0))
    unfinished = [
        sa.select(size.label("size"))
        .where(
            jobs.c.user_id == sa.bindparam("user", type_=sa.Integer),
            jobs.c.status == sa.literal_column(f"'{status}'"),
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
