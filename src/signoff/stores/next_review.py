"""The next held answer for a reviewer, in SQL.

Each queue has two ranges of an index, in the order of the desk: the answers that nobody has opened, and those that
somebody has. So neither the number of held answers nor that of opened ones matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain, repeat
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.job import Job
from signoff.core.reviews.queues import NextReview
from signoff.core.transitions import Guard
from signoff.store import TransitionRequest
from signoff.stores.schema import (
    ASSIGNED_TO_REVIEW,
    FREE_TO_REVIEW,
    OPENED_TO_REVIEW,
    WAITS_FOR_REVIEW,
    jobs,
    review_queue_name,
    review_rank,
    votes,
)
from signoff.stores.transaction import Tx
from signoff.stores.transitions import (
    EVERY_COLUMN,
    NOW,
    changed_jobs,
    guards,
    parameters_of,
    record_transition,
    update_for,
)

# Numbers of answers to look at, in turn. Processes that look at the same answers lock one each; a process that finds
# all of them locked looks at more. SQLite has one writer, and needs none of this.
CANDIDATES = (2, 16, 128, 512)


def open_next(tx: Tx, query: NextReview, actor: str, lease_seconds: float) -> Job | None:
    """Open the first answer that the reviewer may open; return its job, None if none is left."""
    request = TransitionRequest(
        verb="open",
        actor=actor,
        reviewer=query.reviewer,
        changes={"review_lease": query.reviewer},
        after_seconds={"review_lease_until": lease_seconds},
    )
    opened = _open_first(tx, query, parameters_of(tx, request))
    for job in opened:
        record_transition(tx, job, request)
    return opened[0] if opened else None


def _open_first(tx: Tx, query: NextReview, parameters: dict[str, Any]) -> list[Job]:
    """Open the first candidate that no other process has locked; return its job in a list."""
    parameters = parameters | {"me": query.reviewer, "not_user": -1 if query.not_user_id is None else query.not_user_id}
    if tx.conn.dialect.name == "sqlite":
        padding = _padded(len(query.skip)) - len(query.skip)
        parameters |= {f"queue_{number}": name for number, name in enumerate(query.queues)}
        parameters |= {f"skip_{number}": job_id for number, job_id in enumerate(chain(query.skip, repeat("", padding)))}
        statement = open_first_statement(len(query.queues), len(query.skip) + padding)
        return changed_jobs(tx, statement, parameters)
    parameters |= {"queues": list(query.queues), "skip": list(query.skip)}
    for candidates in CANDIDATES:
        if opened := changed_jobs(tx, open_unlocked_statement(candidates), parameters):
            return opened
    return []


def _padded(number: int) -> int:
    """Return the number of parameters for `number` ids: a power of two, so that there are few different statements."""
    return 1 << (number - 1).bit_length() if number else 0


@lru_cache(maxsize=256)
def open_first_statement(queues: int, skipped: int) -> ReturningUpdate[Any]:
    """Return the update that opens the first candidate, for SQLite, which has no lateral joins."""
    is_skipped = jobs.c.id.in_([sa.bindparam(f"skip_{number}", type_=sa.Text) for number in range(skipped)])
    conditions = [~is_skipped] if skipped else []
    ranges = [_ordered(_ONE, ASSIGNED_TO_REVIEW, _IS_MINE, _IS_FREE, *conditions)]
    for number in range(queues):
        is_in_queue = review_queue_name == sa.bindparam(f"queue_{number}", type_=sa.Text)
        ranges += [_ordered(_ONE, *each, is_in_queue, *conditions) for each in _OF_QUEUE]
    every = _union([sa.select(each.subquery()) for each in ranges])
    return _open(sa.select(every.c.id).order_by(every.c.tier, every.c.rank, every.c.id).limit(_ONE))


@cache
def open_unlocked_statement(candidates: int) -> ReturningUpdate[Any]:
    """Return the update that opens the first of `candidates` that nobody has locked, for PostgreSQL.

    Its size does not depend on the number of queues, and its limits are no parameters: with parameters, PostgreSQL
    would plan it anew each time, which takes longer than the query.
    """
    limit = _number(candidates)
    is_skipped = jobs.c.id == sa.func.any(sa.bindparam("skip", type_=_texts()))
    names = sa.func.unnest(sa.bindparam("queues", type_=_texts()))
    queue = names.table_valued(sa.column("queue_name", sa.Text)).render_derived()
    assigned = _ordered(limit, ASSIGNED_TO_REVIEW, _IS_MINE, _IS_FREE, ~is_skipped).subquery()
    ranges = [sa.select(assigned)]
    for each in _OF_QUEUE:
        first = _ordered(limit, *each, review_queue_name == queue.c.queue_name, ~is_skipped).lateral()
        ranges.append(sa.select(first).select_from(queue.join(first, sa.true())))
    every = _union(ranges)
    first = sa.select(every.c.id).order_by(every.c.tier, every.c.rank, every.c.id).limit(limit)
    # An array, and not a subquery: the planner must not join it with all jobs.
    is_candidate = jobs.c.id == sa.func.any(sa.func.array(first.scalar_subquery()))
    still_free = sa.select(jobs.c.id).where(is_candidate, WAITS_FOR_REVIEW, _IS_FREE)
    in_order = still_free.order_by(jobs.c.assignee.is_(None), review_rank, jobs.c.id)
    return _open(in_order.limit(_ONE).with_for_update(skip_locked=True))


def _open(first: sa.Select[Any]) -> ReturningUpdate[Any]:
    is_first = jobs.c.id == first.correlate(None).scalar_subquery()
    changes = update_for("open", ("review_lease", "review_lease_until"))
    return changes.where(is_first, *guards("open", but=_OF_ITS_ROUND)).returning(*EVERY_COLUMN)


def _texts() -> sa.ARRAY[str]:
    return sa.ARRAY(sa.Text)


def _union(ranges: Sequence[sa.Select[Any]]) -> sa.Subquery:
    return sa.union_all(*ranges).subquery() if len(ranges) > 1 else ranges[0].subquery()


def _ordered(limit: ColumnElement[int], *conditions: ColumnElement[bool]) -> sa.Select[Any]:
    """Return the query for the first answers of a range that the reviewer may open."""
    tier = sa.literal_column("0" if _IS_MINE in conditions else "1", sa.Integer).label("tier")
    columns: list[ColumnElement[Any]] = [tier, review_rank.label("rank"), jobs.c.id]
    query = sa.select(*columns)
    # With the last columns of the index in the order, PostgreSQL takes no other index, such as one of all held answers.
    last = [jobs.c.review_lease_until] if _HAS_LAPSED in conditions else [jobs.c.user_id, jobs.c.round]
    order = [review_rank, jobs.c.id] + ([] if _IS_MINE in conditions else last)
    return query.where(*conditions, _IS_NOT_OWN, ~_HAS_VOTED).order_by(*order).limit(limit)


def _number(value: int) -> ColumnElement[int]:
    """Return a number as a part of the statement."""
    return sa.literal_column(str(value), sa.Integer)


# The round is that of the row, whichever it is.
_OF_ITS_ROUND = frozenset({Guard.ROUND})
_ONE, _ME = _number(1), sa.bindparam("me", type_=sa.Text)
_HAS_LAPSED = jobs.c.review_lease_until < NOW
_IS_FREE = jobs.c.review_lease.is_(None) | _HAS_LAPSED
_IS_MINE, _IS_NOT_OWN = jobs.c.assignee == _ME, jobs.c.user_id != sa.bindparam("not_user", type_=sa.Integer)
_OF_QUEUE = ((FREE_TO_REVIEW,), (OPENED_TO_REVIEW, _HAS_LAPSED))
_HAS_VOTED = sa.exists().where(votes.c.job_id == jobs.c.id, votes.c.round == jobs.c.round, votes.c.reviewer == _ME)
