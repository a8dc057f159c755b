"""Transitions of jobs, in SQL: one guarded update for each verb (`claim`, `park`, `cancel`, …) and set of columns.

The guards are those of `TRANSITIONS`; each statement is built once.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Row
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.job import RUN_ENDED, TERMINAL, Decision, Job
from signoff.core.reviews.receipt import SIGNED, draft_of
from signoff.core.times import SECOND_US
from signoff.core.transitions import TRANSITIONS, Guard
from signoff.errors import JobNotFound, Stale
from signoff.store import Topic, TransitionRequest
from signoff.stores.audits import asker_of, check_pass, coin_in, end_of_copy, record_coin, record_verdict
from signoff.stores.created_objects import add_created_objects
from signoff.stores.decisions import added_decision, record_decision, record_vote
from signoff.stores.json_column import JsonColumn
from signoff.stores.receipts import append_receipts, check_signer
from signoff.stores.schema import calls, decisions, deliveries, events, jobs
from signoff.stores.statements import execute_prepared
from signoff.stores.transaction import Tx
from signoff.stores.usage import count_ended
from signoff.stores.writer import Operation, RowUpdate

EVERY_COLUMN = tuple(jobs.c)
_NAMES = tuple(column.name for column in EVERY_COLUMN)
_NOT_IN_EVENTS = {"body", "seq", "updated_at"}
_NOT_IN_FIRST_EVENT = {*_NOT_IN_EVENTS, "response", "deliver"}
NOW = sa.bindparam("now", type_=sa.BigInteger)


def transition_operation(job_id: str, *requests: TransitionRequest) -> Operation:
    """Return an operation that makes all transitions or none, and whose result is the job after the last one.

    Its `lock_key` is the id of the job. It raises what `apply_transition` raises.
    """
    request, *others = requests
    if others or not _is_one_update(request):
        return lambda tx: apply_transition(tx, job_id, *requests)

    def finish(tx: Tx, row: Sequence[Any] | None) -> Job:
        if row is None:
            raise _transition_error(tx, job_id, request)
        return _finish(tx, [_job_of_encoded(row)], [request])

    statement = _statement(request.verb, (*request.changes, *request.after_seconds))
    return RowUpdate(statement, partial(parameters_of, request=request, job=job_id), finish)


def _is_one_update(request: TransitionRequest) -> bool:
    """Return True if a transition begins with its guarded update, and needs nothing of the state before it."""
    is_of_review = request.verb in SIGNED or request.decision is not None or request.vote is not None
    return not is_of_review and coin_in(request.changes) is None and Guard.QUIET not in TRANSITIONS[request.verb].guards


def apply_transition(tx: Tx, job_id: str, *requests: TransitionRequest) -> Job:
    """Make all transitions or none, and return the job after the last one.

    Raises Stale, JobNotFound, and Unreadable if this process cannot sign the receipt of a verdict.
    """
    before = _held_job(tx, job_id, requests)
    decision = next((request.decision for request in requests if request.decision is not None), None)
    if len(requests) == 1:
        versions = [_apply_one(tx, job_id, requests[0])]
    else:
        with tx.conn.begin_nested():
            versions = [_apply_one(tx, job_id, request) for request in requests]
    for job, request in zip(versions, requests, strict=True):
        draft = None if before is None else draft_of(request.verb, before, job, decision)
        if draft is not None:
            tx.at_end(append_receipts, draft)
    return _finish(tx, versions, requests)


def _finish(tx: Tx, versions: list[Job], requests: Sequence[TransitionRequest]) -> Job:
    """Record transitions whose updates were made, and what they entail; return the job after the last one."""
    for job, request in zip(versions, requests, strict=True):
        record_transition(tx, job, request)
    if is_redone_copy(versions[-1]):
        end = end_of_copy(asker_of(tx, versions[-1]))
        versions.append(_apply_one(tx, versions[-1].id, end))
        record_transition(tx, versions[-1], end)
    if versions[-1].is_terminal:
        _propagate_end(tx, versions[-1], requests[-1].actor)
    return versions[-1]


def _held_job(tx: Tx, job_id: str, requests: Sequence[TransitionRequest]) -> Job | None:
    """Return the job as its reviewer saw it, if a verdict takes effect now, and check that its receipt can be signed.

    Raises Unreadable.
    """
    if SIGNED.isdisjoint(request.verb for request in requests):
        return None
    check_signer(tx)
    return read_job(tx.conn, _HELD, job_id)


def is_redone_copy(job: Job) -> bool:
    """Return True if a reviewer has sent back a copy, for which no model is asked again."""
    return job.copy_of is not None and job.status == "bot"


def record_transition(tx: Tx, job: Job, request: TransitionRequest) -> None:
    """Add the decision, the event, the change notifications and the deliveries of a transition that was made."""
    if request.decision is not None:
        record_decision(tx, job, request.decision)
    tx.add(events, event_of(job, request.verb, request.actor, changed_columns(job, request)))
    if "response" in request.changes:
        add_created_objects(tx, job)
    record_coin(tx, job, request)
    if (copy := record_verdict(tx, job, request.verb)) is not None:
        add_copy(tx, copy, request.actor)
    if job.is_terminal and job.copy_of is None:
        count_ended(tx, job, job.created_at)
    tx.changes.extend(changes_of(job))
    create_deliveries(tx, job, request.verb)


def add_copy(tx: Tx, copy: Job, actor: str) -> None:
    """Add a copy of a job for reviewers, with its first event."""
    tx.add(events, event_of(copy, "present", actor, copied_data(copy)))
    tx.add(jobs, msgspec.structs.asdict(copy))
    tx.changes.extend(changes_of(copy))


def _propagate_end(tx: Tx, job: Job, actor: str) -> None:
    """Cancel the unfinished steps of a run that has failed, and wake the run that a step belongs to."""
    if job.status == "fail" and job.pipeline_id is not None:
        _cancel_steps(tx, job, actor)
    if job.parent_id is not None:
        _wake_run(tx, job.parent_id, actor)


def _cancel_steps(tx: Tx, run: Job, actor: str) -> None:
    """Cancel the unfinished steps of a run, at every depth."""
    request = TransitionRequest(verb="cancel", actor=actor, changes={"error": RUN_ENDED})
    unfinished = update_for("cancel", ("error",)).where(jobs.c.parent_id == sa.bindparam("run"), *guards("cancel"))
    rows = tx.conn.execute(unfinished.returning(*EVERY_COLUMN), parameters_of(tx, request, run=run.id)).all()
    for job in map(job_of, rows):
        record_transition(tx, job, request)
        if job.pipeline_id is not None:
            _cancel_steps(tx, job, actor)


def _wake_run(tx: Tx, run_id: str, actor: str) -> None:
    """Make a run due if it is parked, which means that it waits for its steps.

    Lock its row first, to wait for a transaction that is parking it at this moment.
    """
    tx.conn.execute(_LOCK, {"job": run_id})
    request = TransitionRequest(verb="wake", actor=actor, after_seconds={"due_at": 0})
    for run in changed_jobs(tx, _statement("wake", ("due_at",)), parameters_of(tx, request, job=run_id)):
        record_transition(tx, run, request)


def _apply_one(tx: Tx, job_id: str, request: TransitionRequest) -> Job:
    """Execute the guarded update, and record the vote. Raises Stale, JobNotFound, PassLapsed."""
    check_pass(tx, request)
    if Guard.QUIET in TRANSITIONS[request.verb].guards:  # lock the row before its subquery counts steps
        tx.conn.execute(_LOCK, {"job": job_id})
    statement = _statement(request.verb, (*request.changes, *request.after_seconds))
    changed = changed_jobs(tx, statement, parameters_of(tx, request, job=job_id))
    if not changed:
        raise _transition_error(tx, job_id, request)
    [job] = changed
    if request.vote is not None:
        record_vote(tx, job, request.vote)
    return job


@cache
def _statement(verb: str, changed: tuple[str, ...]) -> ReturningUpdate[Any]:
    """Return the guarded update of one job for `verb`, which also sets the columns `changed`."""
    is_allowed = (jobs.c.id == sa.bindparam("job"), *guards(verb))
    if verb == "lapse":  # a dead worker's transaction may still hold locks: do not wait for them
        free = sa.select(jobs.c.id).where(*is_allowed).with_for_update(skip_locked=True).cte("free")
        is_allowed = (jobs.c.id.in_(sa.select(free.c.id)),)
    return update_for(verb, changed).where(*is_allowed).returning(*EVERY_COLUMN)


@cache
def select_eligible(verb: str) -> sa.Select[Any]:
    """Return a query for the jobs whose guards of `verb` hold, apart from those that depend on the actor.

    Its parameters are `now` and `limit`.
    """
    return sa.select(*EVERY_COLUMN).where(*guards(verb, but=_ACTOR)).limit(sa.bindparam("limit", type_=sa.Integer))


def update_for(verb: str, changed: tuple[str, ...]) -> sa.Update:
    """Return an update with the changes of `verb`, and of the columns `changed`, each with a parameter `new_COLUMN`."""
    transition = TRANSITIONS[verb]
    return sa.update(jobs).values(
        {
            "status": sa.bindparam("to", type_=sa.Text),
            "seq": jobs.c.seq + 1,
            "updated_at": NOW,
            **dict.fromkeys(transition.clears, sa.null()),
            **{column: jobs.c[column] + increment for column, increment in transition.adds.items()},
            **{column: sa.bindparam(f"new_{column}", type_=jobs.c[column].type) for column in changed},
        }
    )


def parameters_of(tx: Tx, request: TransitionRequest, **more: str) -> dict[str, Any]:
    """Return the parameters of the guarded update for `request`, and `more` of the same statement."""
    return {
        "now": tx.now,
        "to": request.to or TRANSITIONS[request.verb].targets[0],
        "actor_lease": request.lease,
        "actor_round": request.round,
        "reviewer": request.reviewer,
        "actor_seq": request.seq,
        "actor_settled": request.settled_steps,
        **{f"new_{column}": value for column, value in request.changes.items()},
        **{f"new_{column}": tx.now + round(seconds * SECOND_US) for column, seconds in request.after_seconds.items()},
        **more,
    }


def guards(verb: str, but: frozenset[Guard] = frozenset()) -> list[ColumnElement[bool]]:
    """Return the conditions under which `verb` is allowed, without those of the guards in `but`.

    Statuses are literals in the statement, because a partial index cannot serve a parameter; and one status is compared
    by `=`, because SQLite does not see that `IN` with one value implies the condition of an index.
    """
    transition = TRANSITIONS[verb]
    statuses: list[ColumnElement[str]] = [sa.literal_column(f"'{status}'", sa.Text) for status in transition.sources]
    sources = jobs.c.status == statuses[0] if len(statuses) == 1 else jobs.c.status.in_(statuses)
    return [sources, *(_GUARDS[guard] for guard in transition.guards if guard not in but)]


_ACTOR = frozenset({Guard.LEASE, Guard.ROUND})
_REVIEWER = sa.bindparam("reviewer", type_=sa.Text)
_SEQ = sa.bindparam("actor_seq", type_=sa.Integer)
_STEPS = jobs.alias("steps")
_SETTLED_STEPS = (
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
# `core.transitions.Guard` has the meanings. A verdict takes effect at `release_at`; until then, it can be undone.
# An actor without a lease or a round fails LEASE or ROUND, because NULL is not equal to anything.
_GUARDS: dict[Guard, ColumnElement[bool]] = {
    Guard.DUE: jobs.c.lease.is_(None) & jobs.c.parked_at.is_(None) & (jobs.c.due_at <= NOW),
    Guard.LEASE: jobs.c.lease == sa.bindparam("actor_lease", type_=sa.Text),
    Guard.LAPSED: jobs.c.lease.is_not(None) & (jobs.c.lease_until < NOW),
    Guard.ROUND: jobs.c.round == sa.bindparam("actor_round", type_=sa.Integer),
    Guard.SEEN: _SEQ.is_(None) | (jobs.c.seq == _SEQ),
    Guard.OPENED: jobs.c.review_lease == _REVIEWER,
    Guard.UNOPENED: sa.or_(
        jobs.c.review_lease.is_(None),
        jobs.c.review_lease == _REVIEWER,
        jobs.c.review_lease_until < NOW,
    ),
    Guard.UNDECIDED: jobs.c.release_at.is_(None),
    Guard.DECIDED: jobs.c.release_at.is_not(None),
    Guard.UNRELEASED: jobs.c.release_at > NOW,
    Guard.RELEASED: jobs.c.release_at <= NOW,
    Guard.OVERDUE: jobs.c.review_deadline <= NOW,
    Guard.QUIET: sa.bindparam("actor_settled", type_=sa.Integer) == _SETTLED_STEPS,
    Guard.PARKED: jobs.c.parked_at.is_not(None),
}
_HELD = sa.select(*EVERY_COLUMN).where(jobs.c.id == sa.bindparam("job", type_=sa.Text)).with_for_update()
_LOCK = sa.select(jobs.c.id).where(jobs.c.id == sa.bindparam("job", type_=sa.Text)).with_for_update()


def _transition_error(tx: Tx, job_id: str, request: TransitionRequest) -> Stale | JobNotFound:
    """Return the error that says why the guarded update found no row."""
    row = tx.conn.execute(_STATE, {"job": job_id, "actor_round": request.round}).one_or_none()
    if row is None:
        status = tx.conn.execute(_STATUS_OF_CALL, {"job": job_id}).scalar_one_or_none()
        if status is not None:
            return Stale(f"The job is {status}; `{request.verb}` is not possible now.", job_id=job_id)
        return JobNotFound(f"The job {job_id} does not exist, or you may not see it.")
    decision: Decision | None = row.decision or row.round_decision or added_decision(tx, job_id, request.round)
    decided = f"; {decision.reviewer} decided: {decision.verdict}" if decision else ""
    has_moved_on = Guard.ROUND in TRANSITIONS[request.verb].guards and request.round not in {None, row.round}
    in_round = f"; this is round {row.round}, not {request.round}" if has_moved_on else ""
    is_open = row.review_lease not in {None, request.reviewer} and row.review_lease_until >= tx.now
    changed = "; it has changed since" if request.seq not in {None, row.seq} else ""
    opened = f"; {row.review_lease} has it open" if is_open else changed
    return Stale(
        f"The job is {row.status}{decided}{in_round}{opened}; `{request.verb}` is not possible now.",
        job_id=job_id,
    )


_OF_ROUND = (decisions.c.job_id == jobs.c.id) & (decisions.c.round == sa.bindparam("actor_round", type_=sa.Integer))
_STATE = (
    sa.select(jobs.c.status, jobs.c.round, jobs.c.seq, jobs.c.review_lease, jobs.c.review_lease_until, jobs.c.decision)
    .add_columns(decisions.c.decision.label("round_decision"))
    .select_from(jobs.outerjoin(decisions, _OF_ROUND))
    .where(jobs.c.id == sa.bindparam("job"))
)
_STATUS_OF_CALL = sa.select(calls.c.status).where(calls.c.id == sa.bindparam("job", type_=sa.Text))


def job_of(row: Row[Any]) -> Job:
    """Return the job of a row with all columns, in the order of `EVERY_COLUMN`."""
    return Job(**dict(zip(_NAMES, row, strict=True)))


def read_job(conn: sa.Connection, query: sa.Select[Any], job_id: str) -> Job | None:
    """Return the job that a query with all columns, which is built once, finds for its parameter `job`."""
    rows = execute_prepared(conn, query, {"job": job_id})
    return _job_of_encoded(rows[0]) if rows else None


def changed_jobs(tx: Tx, statement: ReturningUpdate[Any], parameters: dict[str, Any]) -> list[Job]:
    """Execute an update that is built once, and return the jobs that it has changed."""
    return [_job_of_encoded(row) for row in execute_prepared(tx.conn, statement, parameters)]


def _job_of_encoded(row: Sequence[Any]) -> Job:
    """Return the job of a row with all columns, whose JSON is not decoded yet."""
    values = list(row)
    for index, decode in _JSON_COLUMNS:
        if values[index] is not None:
            values[index] = decode(values[index])
    return Job(**dict(zip(_NAMES, values, strict=True)))


_JSON_COLUMNS = [
    (index, msgspec.json.Decoder(column.type.value_type).decode)
    for index, column in enumerate(EVERY_COLUMN)
    if isinstance(column.type, JsonColumn)
]


def event_of(job: Job, verb: str, actor: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return the row of the event whose transition has led to `job`."""
    return {"job_id": job.id, "seq": job.seq, "verb": verb, "actor": actor, "at": job.updated_at, "data": data}


def initial_data(job: Job) -> dict[str, Any]:
    """Return the data of a job's first event: its columns, without the body and the answer, which the row has."""
    row = msgspec.structs.asdict(job)
    data = {name: value for name, value in row.items() if value is not None and name not in _NOT_IN_FIRST_EVENT}
    return data | {"metadata": msgspec.Raw(job.metadata)}


def copied_data(copy: Job) -> dict[str, Any]:
    """Return the data of the first event of a copy for reviewers: with its answer, as that of a job that is held."""
    answer = {} if copy.response is None else {"response": msgspec.Raw(copy.response)}
    return initial_data(copy) | answer


def changes_of(job: Job) -> list[tuple[Topic, str]]:
    """Return the change notifications for a job that has changed."""
    is_waiting = job.status == "bot" and job.lease is None and job.parked_at is None
    return [("job", job.id), ("due", job.id)] if is_waiting else [("job", job.id)]


def create_deliveries(tx: Tx, job: Job, verb: str) -> None:
    """Add a delivery for each target of `job`, if `verb` has ended it. A cancelled job is never delivered."""
    if not job.is_terminal or verb == "cancel":
        return
    for to in job.deliver:
        target = {"job_id": job.id, "kind": to.kind, "address": to.address, "host": to.host}
        tx.add(
            deliveries,
            target
            | {"id": to.message_id(job.id), "state": "due", "attempt": 0, "due_at": tx.now, "created_at": tx.now},
        )
        tx.changes.append(("delivery", to.kind))


def changed_columns(job: Job, request: TransitionRequest) -> dict[str, Any]:
    """Return the data of the event: the changed columns with their new values, and the note of the request.

    The answer of a job that was never held is left out: the job's row has it.
    """
    transition = TRANSITIONS[request.verb]
    names = ("status", *transition.clears, *transition.adds, *request.changes, *request.after_seconds)
    data = {name: getattr(job, name) for name in names if name not in _NOT_IN_EVENTS}
    if job.round == 0:
        data.pop("response", None)
    elif data.get("response") is not None:
        data["response"] = msgspec.Raw(data["response"])
    return data | dict(request.note)
