"""The claim of due jobs, in SQL: by priority, and in turns between users.

A claim takes jobs of one priority. It visits the users that have due jobs of it in the order of their ids, beginning
after the last user of the claim before, and takes the same number of jobs from each.
"""

from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.job import PRIORITIES, Job
from signoff.core.turn import BEFORE_ALL_USERS, MAX_USERS_OF_CLAIM, Turn
from signoff.store import TransitionRequest
from signoff.stores.schema import IS_WAITING, events, jobs
from signoff.stores.statements import execute_prepared
from signoff.stores.transaction import Tx
from signoff.stores.transitions import (
    EVERY_COLUMN,
    changed_columns,
    changed_jobs,
    event_of,
    guards,
    parameters_of,
    update_for,
)

_PRIORITY = sa.bindparam("claimed_priority", type_=sa.Integer)
_LATER = sa.literal_column("'later'", sa.Text)
_NEXT_PRIORITY = sa.select(sa.func.max(jobs.c.priority)).where(
    IS_WAITING, jobs.c.priority < sa.bindparam("below", type_=sa.Integer)
)


def claim_jobs(tx: Tx, request: TransitionRequest, limit: int, turn: Turn) -> list[Job]:
    """Apply the claim `request` to up to `limit` due jobs, and return them: user by user, the oldest first."""
    excluded = {f"model_{number}": model for number, model in enumerate(turn.full_models)}
    excluded |= {f"user_{number}": user for number, user in enumerate(turn.full_users)}
    below = PRIORITIES.stop
    while (priority := _next_priority(tx, below)) is not None:
        parameters = {"claimed_priority": priority, "now": tx.now, **excluded}
        users = _users_in_turn(tx, parameters, min(limit, MAX_USERS_OF_CLAIM), turn)
        if users and (claimed := _claim_of_users(tx, parameters, users, limit, request, turn)):
            for job in claimed:
                tx.add(events, event_of(job, request.verb, request.actor, changed_columns(job, request)))
            return claimed
        below = priority
    return []


def _next_priority(tx: Tx, below: int) -> int | None:
    """Return the highest priority below `below` of a waiting job, which may not be due yet."""
    [(priority,)] = execute_prepared(tx.conn, _NEXT_PRIORITY, {"below": below})
    return priority


def _users_in_turn(tx: Tx, parameters: dict[str, Any], limit: int, turn: Turn) -> list[int]:
    """Return up to `limit` users that have an eligible job of the priority, in the order of their turns."""
    statement = _users_statement(len(turn.full_models), len(turn.full_users))

    def users_after(user_id: int) -> list[int]:
        values = {**parameters, "after": user_id, "limit": limit}
        return [user for (user,) in execute_prepared(tx.conn, statement, values)]

    users = users_after(turn.after_user)
    if len(users) < limit and turn.after_user > BEFORE_ALL_USERS:
        users += [user for user in users_after(BEFORE_ALL_USERS) if user <= turn.after_user]
    return users[:limit]


@cache
def _users_statement(full_models: int, full_users: int) -> sa.Select[Any]:
    """Return the query for users after the user `after`.

    It reads one entry of the index for each user, and not each job, and goes on until it has `limit` of them.
    """
    first = _next_user(sa.bindparam("after", type_=sa.Integer))
    visited = sa.select(first.label("user_id")).cte("visited", recursive=True)
    visited = visited.union_all(sa.select(_next_user(visited.c.user_id)).where(visited.c.user_id.is_not(None)))
    eligible = sa.exists().where(jobs.c.user_id == visited.c.user_id, *_is_eligible(full_models))
    has_room = [visited.c.user_id != sa.bindparam(f"user_{number}", type_=sa.Integer) for number in range(full_users)]
    limit = sa.bindparam("limit", type_=sa.Integer)
    return sa.select(visited.c.user_id).where(visited.c.user_id.is_not(None), *has_room, eligible).limit(limit)


def _next_user(after: ColumnElement[int]) -> sa.ScalarSelect[int]:
    query = sa.select(sa.func.min(jobs.c.user_id)).where(IS_WAITING, jobs.c.priority == _PRIORITY)
    return query.where(jobs.c.user_id > after).scalar_subquery()


def _is_eligible(full_models: int) -> list[ColumnElement[bool]]:
    has_room = [jobs.c.model != sa.bindparam(f"model_{number}", type_=sa.Text) for number in range(full_models)]
    return [jobs.c.lane == _LATER, *guards("claim"), jobs.c.priority == _PRIORITY, *has_room]


def _claim_of_users(
    tx: Tx, parameters: dict[str, Any], users: list[int], limit: int, request: TransitionRequest, turn: Turn
) -> list[Job]:
    """Claim up to `limit` jobs, the oldest of each of `users`, as many from each."""
    share, rest = divmod(limit, len(users))
    of_users = {f"claimed_user_{place}": user for place, user in enumerate(users)}
    of_users |= {f"limit_{place}": share + (place < rest) for place in range(len(users))}
    statement = _claim_statement(len(users), len(turn.full_models))
    claimed = changed_jobs(tx, statement, {**parameters, **of_users, **parameters_of(tx, request)})
    return sorted(claimed, key=lambda job: (users.index(job.user_id), job.due_at, job.id))


@cache
def _claim_statement(users: int, full_models: int) -> ReturningUpdate[Any]:
    due = [_jobs_of_user(place, full_models) for place in range(users)]
    ids = sa.union_all(*(sa.select(each.c.id) for each in due)) if users > 1 else sa.select(due[0].c.id)
    return update_for("claim", ("lease", "lease_until")).where(jobs.c.id.in_(ids)).returning(*EVERY_COLUMN)


def _jobs_of_user(place: int, full_models: int) -> sa.CTE:
    is_theirs = jobs.c.user_id == sa.bindparam(f"claimed_user_{place}", type_=sa.Integer)
    query = sa.select(jobs.c.id).where(*_is_eligible(full_models), is_theirs).order_by(jobs.c.due_at, jobs.c.id)
    limit = sa.bindparam(f"limit_{place}", type_=sa.Integer)
    return query.limit(limit).with_for_update(skip_locked=True).cte(f"due_{place}")
