"""Depths of the queue, in SQL: the due jobs that no worker has claimed, by the role of their owners.

The number of jobs that wait does not matter: counting ends at a bound, and of each user the oldest job is the first one
of a range of the index from which jobs are claimed.
"""

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.backlog import JobQueueDepth
from signoff.core.job import PRIORITIES
from signoff.core.times import SECOND_US
from signoff.stores.people_schema import users
from signoff.stores.schema import IS_WAITING, jobs

# Maximum number of users of one priority whose oldest job is read.
MAX_VISITED = 256
# Owner of the jobs of callers without a user.
NO_OWNER = "none"
_LATER = jobs.c.lane == sa.literal_column("'later'", sa.Text)
_NOW, _LIMIT = sa.bindparam("now", type_=sa.BigInteger), sa.bindparam("limit", type_=sa.Integer)
_PRIORITY = sa.bindparam("of_priority", type_=sa.Integer)
_NEXT_PRIORITY = sa.select(sa.func.max(jobs.c.priority)).where(
    IS_WAITING, _LATER, jobs.c.priority < sa.bindparam("below", type_=sa.Integer)
)


def read_queue_depths(conn: Connection, now: int, at_most: int) -> list[JobQueueDepth]:
    """Return the depths of all owners that have due jobs; `now` is in microseconds, and counting ends at `at_most`."""
    oldest = dict[str, int]()
    below: int | None = PRIORITIES.stop
    while (below := conn.execute(_NEXT_PRIORITY, {"below": below}).scalar_one()) is not None:
        for row in conn.execute(_OLDEST, {"of_priority": below}):
            oldest[row.owner] = min(oldest.get(row.owner, now), row.due_at)
    if not oldest:
        return []
    return [
        JobQueueDepth(
            owner=row.owner, jobs=row.number, oldest_seconds=max(0.0, (now - oldest.get(row.owner, now)) / SECOND_US)
        )
        for row in conn.execute(_NUMBERS, {"now": now, "limit": at_most})
    ]


def _oldest_statement() -> sa.Select[str, int]:
    """Return the query for the oldest job of each role: it reads two entries of the index for each user."""
    first = _next_user(sa.literal_column(str(-(2**31)), sa.Integer))
    visited = sa.select(first.label("user_id"), sa.literal_column("1", sa.Integer).label("place"))
    visited = visited.cte("visited", recursive=True)
    is_next = (visited.c.user_id.is_not(None), visited.c.place < MAX_VISITED)
    visited = visited.union_all(sa.select(_next_user(visited.c.user_id), visited.c.place + 1).where(*is_next))
    of_user = (IS_WAITING, _LATER, jobs.c.priority == _PRIORITY, jobs.c.user_id == visited.c.user_id)
    due_at = sa.select(sa.func.min(jobs.c.due_at)).where(*of_user).correlate(visited).scalar_subquery()
    each = sa.select(visited.c.user_id, due_at.label("due_at")).where(visited.c.user_id.is_not(None)).subquery()
    owner = _owner()
    of_each = sa.outerjoin(each, users, users.c.id == each.c.user_id)
    return sa.select(owner, sa.func.min(each.c.due_at).label("due_at")).select_from(of_each).group_by(owner)


def _numbers_statement() -> sa.Select[str, int]:
    """Return the query for the number of due jobs of each role, among the first `limit` of the index."""
    some = sa.select(jobs.c.user_id, jobs.c.due_at).where(IS_WAITING, _LATER).limit(_LIMIT).subquery()
    owner = _owner()
    of_some = sa.outerjoin(some, users, users.c.id == some.c.user_id)
    number = sa.func.count().label("number")
    return sa.select(owner, number).select_from(of_some).where(some.c.due_at <= _NOW).group_by(owner)


def _next_user(after: ColumnElement[int]) -> sa.ScalarSelect[int]:
    query = sa.select(sa.func.min(jobs.c.user_id)).where(IS_WAITING, _LATER, jobs.c.priority == _PRIORITY)
    return query.where(jobs.c.user_id > after).scalar_subquery()


def _owner() -> ColumnElement[str]:
    return sa.func.coalesce(users.c.role, sa.literal_column(f"'{NO_OWNER}'", sa.Text)).label("owner")


_OLDEST = _oldest_statement()
_NUMBERS = _numbers_statement()
