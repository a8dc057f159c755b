"""Moves as SQL: one statement for each verb, built once; its guards come from `MOVES`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Row
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.job import RUN_ENDED, TERMINAL, TRANSITIONS, Decision, Guard, Job
from signoff.errors import JobNotFound, Stale
from signoff.store import Topic, TransitionRequest
from signoff.stores.schema import decisions, deliveries, events, jobs, votes
from signoff.stores.writer import Tx

EVERY_COLUMN = tuple(jobs.c)
SECOND = 1_000_000
_NAMES = tuple(column.name for column in EVERY_COLUMN)
_LEFT_TO_THE_ROW = {"body", "seq", "updated_at"}
_NOW = sa.bindparam("now", type_=sa.BigInteger)


def apply_transition(tx: Tx, job_id: str, *steps: TransitionRequest) -> Job:
    """The job after all `steps`, or none of them. Raises Stale, JobNotFound."""
    if len(steps) == 1:
        made = [_step(tx, job_id, steps[0])]
    else:
        with tx.conn.begin_nested():
            made = [_step(tx, job_id, step) for step in steps]
    for job, step in zip(made, steps, strict=True):
        _told(tx, job, step)
    if made[-1].is_terminal:
        _follow(tx, made[-1], steps[-1].actor)
    return made[-1]


def _told(tx: Tx, job: Job, step: TransitionRequest) -> None:
    """The event of a step that was made, the news, and the deliveries."""
    tx.add(events, event_of(job, step.verb, step.actor, _changed(job, step)))
    tx.changes.extend(news_of(job))
    deliver_end(tx, job, step.verb)


def _follow(tx: Tx, job: Job, actor: str) -> None:
    """What the end of a job brings about: its steps are not wanted any more, and the run that it belongs to goes on."""
    if job.status == "fail" and job.pipeline_id is not None:
        _cancel_steps(tx, job, actor)
    if job.parent_id is not None:
        _wake(tx, job.parent_id, actor)


def _cancel_steps(tx: Tx, run: Job, actor: str) -> None:
    """Cancels what goes on below a run, at every depth."""
    step = TransitionRequest(verb="cancel", actor=actor, changes={"error": RUN_ENDED})
    unfinished = _update("cancel", ("error",)).where(jobs.c.parent_id == sa.bindparam("run"), *guards("cancel"))
    rows = tx.conn.execute(unfinished.returning(*EVERY_COLUMN), {"run": run.id} | _parameters(tx, step)).all()
    for job in map(job_of, rows):
        _told(tx, job, step)
        if job.pipeline_id is not None:
            _cancel_steps(tx, job, actor)


def _wake(tx: Tx, run_id: str, actor: str) -> None:
    """Lets a run go on, if it is parked. Its row is locked first: who parks it at this moment is waited for."""
    tx.conn.execute(_LOCK, {"job": run_id})
    step = TransitionRequest(verb="wake", actor=actor, after_seconds={"due_at": 0})
    row = tx.conn.execute(_move("wake", ("due_at",)), {"job": run_id} | _parameters(tx, step)).one_or_none()
    if row is not None:
        _told(tx, job_of(row), step)


def _step(tx: Tx, job_id: str, step: TransitionRequest) -> Job:
    """One guarded update, and its decision."""
    if Guard.QUIET in TRANSITIONS[step.verb].guards:  # what it counts is seen as it is once the row is ours
        tx.conn.execute(_LOCK, {"job": job_id})
    statement = _move(step.verb, (*step.changes, *step.after_seconds))
    row = tx.conn.execute(statement, {"job": job_id} | _parameters(tx, step)).one_or_none()
    if row is None:
        raise _refusal(tx, job_id, step)
    job = job_of(row)
    if step.decision is not None:
        _record(tx, job, step.decision)
    return job


@cache
def _move(verb: str, changed: tuple[str, ...]) -> ReturningUpdate[Any]:
    here = (jobs.c.id == sa.bindparam("job"), *guards(verb))
    if verb == "lapse":  # who vanished may have done so in a transaction: nobody waits for its locks
        free = sa.select(jobs.c.id).where(*here).with_for_update(skip_locked=True).cte("free")
        here = (jobs.c.id.in_(sa.select(free.c.id)),)
    return _update(verb, changed).where(*here).returning(*EVERY_COLUMN)


def claim_jobs(tx: Tx, step: TransitionRequest, limit: int, full: Sequence[str] = ()) -> list[Job]:
    """Up to `limit` jobs after the claim that `step` is, by priority, then age; none for the models in `full`."""
    passed_over = {"full": list(full)} if full else {}
    statement = _claim(passes_over=bool(full))
    rows = tx.conn.execute(statement, {"limit": limit} | passed_over | _parameters(tx, step)).all()
    made = sorted(map(job_of, rows), key=lambda job: (-job.priority, job.id))
    for job in made:
        tx.add(events, event_of(job, step.verb, step.actor, _changed(job, step)))
    return made


@cache
def _claim(*, passes_over: bool) -> ReturningUpdate[Any]:
    others = [jobs.c.model.not_in(sa.bindparam("full", expanding=True))] if passes_over else []
    due = (
        sa.select(jobs.c.id)
        .where(jobs.c.lane == sa.literal_column("'later'"), *guards("claim"), *others)
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    update = _update("claim", ("lease", "lease_until"))
    return update.where(jobs.c.id.in_(sa.select(due.c.id))).returning(*EVERY_COLUMN)


@cache
def standing(verb: str) -> sa.Select[Any]:
    """The jobs, at most `limit`, which `verb` may move at `now`, once their lease and their round were seen."""
    return sa.select(*EVERY_COLUMN).where(*guards(verb, but=_SEEN)).limit(sa.bindparam("limit", type_=sa.Integer))


def _update(verb: str, changed: tuple[str, ...]) -> sa.Update:
    """What `verb` always changes, and the columns `changed`, whose values are parameters named after them."""
    move = TRANSITIONS[verb]
    return sa.update(jobs).values(
        {
            "status": sa.bindparam("to", type_=sa.Text),
            "seq": jobs.c.seq + 1,
            "updated_at": _NOW,
            **dict.fromkeys(move.clears, sa.null()),
            **{column: jobs.c[column] + more for column, more in move.adds.items()},
            **{column: sa.bindparam(f"new_{column}", type_=jobs.c[column].type) for column in changed},
        }
    )


def _parameters(tx: Tx, step: TransitionRequest) -> dict[str, Any]:
    return {
        "now": tx.now,
        "to": step.to or TRANSITIONS[step.verb].targets[0],
        "mover_lease": step.lease,
        "mover_round": step.round,
        "mover": step.reviewer,
        "mover_settled": step.settled_steps,
        **{f"new_{column}": value for column, value in step.changes.items()},
        **{f"new_{column}": tx.now + round(seconds * SECOND) for column, seconds in step.after_seconds.items()},
    }


def guards(verb: str, but: frozenset[Guard] = frozenset()) -> list[ColumnElement[bool]]:
    """Where `verb` may begin, whatever the guards in `but` say.

    Statuses stand in the text of the statement, or no partial index would serve it.
    """
    move = TRANSITIONS[verb]
    sources = jobs.c.status.in_([sa.literal_column(f"'{status}'") for status in move.sources])
    return [sources, *(_GUARDS[guard] for guard in move.guards if guard not in but)]


_SEEN = frozenset({Guard.LEASE, Guard.ROUND})
_STEPS = jobs.alias("steps")
_SETTLED = (
    sa.select(sa.func.count())
    .select_from(_STEPS)
    .where(
        _STEPS.c.parent_id == jobs.c.id,
        _STEPS.c.parent_round == jobs.c.round,
        _STEPS.c.status.in_([sa.literal_column(f"'{status}'") for status in sorted(TERMINAL)]),
    )
    .correlate(jobs)
    .scalar_subquery()
)
# A mover without a lease or a round holds none: NULL equals nothing.
_GUARDS: dict[Guard, ColumnElement[bool]] = {
    Guard.DUE: jobs.c.lease.is_(None) & jobs.c.parked_at.is_(None) & (jobs.c.due_at <= _NOW),
    Guard.LEASE: jobs.c.lease == sa.bindparam("mover_lease", type_=sa.Text),
    Guard.LAPSED: jobs.c.lease.is_not(None) & (jobs.c.lease_until < _NOW),
    Guard.ROUND: jobs.c.round == sa.bindparam("mover_round", type_=sa.Integer),
    Guard.UNOPENED: sa.or_(
        jobs.c.review_lease.is_(None),
        jobs.c.review_lease == sa.bindparam("mover", type_=sa.Text),
        jobs.c.review_lease_until < _NOW,
    ),
    Guard.UNDECIDED: jobs.c.release_at.is_(None),
    Guard.DECIDED: jobs.c.release_at.is_not(None),
    Guard.UNRELEASED: jobs.c.release_at > _NOW,
    Guard.RELEASED: jobs.c.release_at <= _NOW,
    Guard.OVERDUE: jobs.c.review_deadline <= _NOW,
    Guard.QUIET: sa.bindparam("mover_settled", type_=sa.Integer) == _SETTLED,
    Guard.PARKED: jobs.c.parked_at.is_not(None),
}
_LOCK = sa.select(jobs.c.id).where(jobs.c.id == sa.bindparam("job", type_=sa.Text)).with_for_update()


def _refusal(tx: Tx, job_id: str, step: TransitionRequest) -> Stale | JobNotFound:
    row = tx.conn.execute(_STATE, {"job": job_id, "mover_round": step.round}).one_or_none()
    if row is None:
        return JobNotFound(f"There is no job {job_id}.")
    decision: Decision | None = row.decision or row.decision_then
    winner = f"; {decision.reviewer} decided: {decision.verdict}" if decision else ""
    is_open = row.review_lease not in {None, step.reviewer} and row.review_lease_until >= tx.now
    opened = f"; {row.review_lease} has it open" if is_open else ""
    return Stale(f"The job is {row.status}{winner}{opened}; it cannot {step.verb} now.", job_id=job_id)


_THEN = (decisions.c.job_id == jobs.c.id) & (decisions.c.round == sa.bindparam("mover_round", type_=sa.Integer))
_STATE = (
    sa.select(
        jobs.c.status,
        jobs.c.review_lease,
        jobs.c.review_lease_until,
        jobs.c.decision,
        decisions.c.decision.label("decision_then"),
    )
    .select_from(jobs.outerjoin(decisions, _THEN))
    .where(jobs.c.id == sa.bindparam("job"))
)


def _record(tx: Tx, job: Job, decision: Decision) -> None:
    """The vote and the decision of this round, for good; one a round, by the primary key."""
    place = {"job_id": job.id, "round": job.round, "at": tx.now}
    tx.conn.execute(sa.insert(votes), place | {"reviewer": decision.reviewer, "verdict": decision.verdict})
    tx.conn.execute(sa.insert(decisions), place | {"decision": decision})


def job_of(row: Row[Any]) -> Job:
    """The job in a row of every column."""
    return Job(**dict(zip(_NAMES, row, strict=True)))


def event_of(job: Job, verb: str, actor: str, data: dict[str, Any]) -> dict[str, Any]:
    """The row of the event that made `job` what it is."""
    return {"job_id": job.id, "seq": job.seq, "verb": verb, "actor": actor, "at": job.updated_at, "data": data}


def news_of(job: Job) -> list[tuple[Topic, str]]:
    """What there is to tell of a job that has changed."""
    waits = job.status == "bot" and job.lease is None and job.parked_at is None
    return [("job", job.id), ("due", job.id)] if waits else [("job", job.id)]


def deliver_end(tx: Tx, job: Job, verb: str) -> None:
    """The deliveries that tell of the end which `verb` made of `job`. Nobody is told of what was cancelled."""
    if not job.is_terminal or verb == "cancel":
        return
    for to in job.deliver:
        place = {"job_id": job.id, "kind": to.kind, "address": to.address, "host": to.host}
        tx.add(
            deliveries,
            place | {"id": to.message_id(job.id), "state": "due", "attempt": 0, "due_at": tx.now, "created_at": tx.now},
        )
        tx.changes.append(("delivery", to.kind))


def _changed(job: Job, step: TransitionRequest) -> dict[str, Any]:
    """The changed columns as they are now. An answer that nobody reviewed stands in the row alone."""
    move = TRANSITIONS[step.verb]
    names: Iterable[str] = dict.fromkeys(("status", *move.clears, *move.adds, *step.changes, *step.after_seconds))
    data = {name: getattr(job, name) for name in names if name not in _LEFT_TO_THE_ROW}
    if job.round == 0:
        data.pop("response", None)
    elif data.get("response") is not None:
        data["response"] = msgspec.Raw(data["response"])
    return data | dict(step.note)
