"""Turns of new jobs, in SQL: users take turns, however many jobs each of them has queued; see `core.turns`."""

import msgspec
import sqlalchemy as sa

from signoff.core.job import Job
from signoff.core.turns import next_turn
from signoff.stores.schema import jobs
from signoff.stores.writer import Tx


def with_turn(tx: Tx, job: Job) -> Job:
    """Return a new job with its turn among the jobs of its priority.

    A job that no worker claims has none, nor has the step of a run: what has begun goes on first.
    """
    if job.lane != "later" or job.is_terminal or job.parent_id is not None:
        return job
    queue = (job.user_id, job.priority)
    if queue in tx.turns:  # a job of this transaction, which may not be inserted yet
        turn = tx.turns[queue] + 1
    else:
        row = tx.conn.execute(_TURNS, {"user": job.user_id, "priority": job.priority}).one()
        turn = next_turn(row.last, row.running, row.first)
    tx.turns[queue] = turn
    return msgspec.structs.replace(job, turn=turn)


_PRIORITY = jobs.c.priority == sa.bindparam("priority", type_=sa.SmallInteger)
# Literals, because a partial index cannot serve a parameter.
_IS_QUEUED = (jobs.c.lane == sa.literal_column("'later'")) & (jobs.c.status == sa.literal_column("'bot'"))
_OF_USER = jobs.c.user_id == sa.bindparam("user", type_=sa.Integer)
_TURNS = sa.select(
    sa.select(sa.func.max(jobs.c.turn))
    .where(_OF_USER, _PRIORITY, _IS_QUEUED, jobs.c.lease.is_(None))
    .scalar_subquery()
    .label("last"),
    sa.select(sa.func.max(jobs.c.turn))
    .where(_PRIORITY, _IS_QUEUED, jobs.c.lease.is_not(None), jobs.c.lease_until > 0)  # as in the index of leases
    .scalar_subquery()
    .label("running"),
    sa.select(sa.func.min(jobs.c.turn))
    .where(_PRIORITY, _IS_QUEUED, jobs.c.lease.is_(None))
    .scalar_subquery()
    .label("first"),
)
