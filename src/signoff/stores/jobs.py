"""Jobs and their moves as SQL; the guards come from `MOVES`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.job import MOVES, Decision, Event, Guard, Job, Status
from signoff.errors import JobNotFound, Stale
from signoff.store import JobFilter, Step, Topic
from signoff.stores.database import Database
from signoff.stores.schema import decisions, events, jobs, votes
from signoff.stores.writer import Rows, Tx

KEY_LIFETIME_US = 24 * 3600 * 1_000_000
_EVERY_COLUMN = tuple(jobs.c)
_HEAVY = {"body", "response"}
_KEEPS_RESPONSE = {"hold"}


class SqlJobs:
    """Jobs in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, job: Job, *, actor: str, due_seconds: float = 0, lease_seconds: float | None = None) -> Job:
        """See `store.Jobs`."""

        def build(now: int) -> tuple[Job, list[tuple[sa.Table, dict[str, Any]]]]:
            made = _timed(job, now, due_seconds, lease_seconds)
            return made, [(jobs, _row(made)), (events, _event(made, "submit", actor, _light(made)))]

        if job.idempotency_key is None:
            return await self._database.write(Rows(build=build, news=_news(job)))
        try:
            return await self._database.write(lambda tx: _insert_or_join(tx, job, build))
        except IntegrityError:  # another process was a moment faster; now its job stands there
            return await self._database.write(lambda tx: _insert_or_join(tx, job, build))

    async def insert_ended(self, job: Job, *, actor: str, verbs: Sequence[str]) -> asyncio.Future[Job]:
        """See `store.Jobs`."""

        def build(now: int) -> tuple[Job, list[tuple[sa.Table, dict[str, Any]]]]:
            made = _timed(job, now, 0, None)
            event = _event(made, verbs[-1], actor, _light(made) | {"moves": list(verbs)})
            return made, [(jobs, _row(made)), (events, event)]

        return await self._database.enqueue(Rows(build=build, news=[("job", job.id)]))

    async def move(self, job_id: str, *steps: Step) -> Job:
        """See `store.Jobs`."""
        return await self._database.write(lambda tx: _moved(tx, job_id, steps))

    async def claim(self, *, actor: str, lease: str, limit: int, lease_seconds: float) -> list[Job]:
        """See `store.Jobs`."""
        return await self._database.write(lambda tx: _claimed(tx, actor, lease, limit, lease_seconds))

    async def renew(self, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
        """See `store.Jobs`."""
        return await self._database.write(lambda tx: _renewed(tx, leases, lease_seconds))

    async def get(self, job_id: str) -> Job | None:
        """See `store.Jobs`."""
        return next(iter(await self._select(sa.select(*_EVERY_COLUMN).where(jobs.c.id == job_id))), None)

    async def statuses(self, job_ids: Sequence[str]) -> dict[str, tuple[Status, int]]:
        """See `store.Jobs`."""
        query = sa.select(jobs.c.id, jobs.c.status, jobs.c.seq).where(jobs.c.id.in_(job_ids))
        rows = await self._database.read(lambda conn, _: conn.execute(query).all())
        return {row.id: (row.status, row.seq) for row in rows}

    async def list(self, which: JobFilter) -> list[Job]:
        """See `store.Jobs`."""
        query = sa.select(*_EVERY_COLUMN).where(*_filters(which)).offset(which.offset).limit(which.limit)
        return await self._select(query.order_by(jobs.c.id.desc() if which.newest_first else jobs.c.id))

    async def count(self, which: JobFilter) -> int:
        """See `store.Jobs`."""
        query = sa.select(sa.func.count()).select_from(jobs).where(*_filters(which))
        return await self._database.read(lambda conn, _: conn.execute(query).scalar_one())

    async def events(self, job_id: str) -> list[Event]:
        """See `store.Jobs`."""
        query = sa.select(*events.c).where(events.c.job_id == job_id).order_by(events.c.seq)
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [Event(**row) for row in rows]

    async def lapsed(self, limit: int) -> list[Job]:
        """See `store.Jobs`."""
        return await self._standing("lapse", limit)

    async def released(self, limit: int) -> list[Job]:
        """See `store.Jobs`."""
        return await self._standing("approve", limit)

    async def overdue(self, limit: int) -> list[Job]:
        """See `store.Jobs`."""
        return await self._standing("expire", limit)

    async def _standing(self, verb: str, limit: int) -> list[Job]:
        """The jobs for which the guards of `verb` hold at this moment."""
        move = MOVES[verb]

        def query(now: int) -> sa.Select[Any]:
            guards = (_guard(guard, Step(verb=verb, actor=""), now) for guard in move.guards)
            return sa.select(*_EVERY_COLUMN).where(jobs.c.status.in_(move.sources), *guards).limit(limit)

        rows = await self._database.read(lambda conn, now: conn.execute(query(now())).mappings().all())
        return [Job(**row) for row in rows]

    async def _select(self, query: sa.Select[Any]) -> list[Job]:
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [Job(**row) for row in rows]


def _insert_or_join(tx: Tx, job: Job, build: Callable[[int], tuple[Job, list[tuple[sa.Table, dict[str, Any]]]]]) -> Job:
    same_key = (jobs.c.user_id == job.user_id) & (jobs.c.idempotency_key == job.idempotency_key)
    row = tx.conn.execute(sa.select(*_EVERY_COLUMN).where(same_key)).mappings().one_or_none()
    if row is not None:
        standing = Job(**row)
        if not _key_is_free(standing, tx.now):
            return standing
        tx.conn.execute(sa.update(jobs).where(jobs.c.id == standing.id).values(idempotency_key=None))
    made, rows = build(tx.now)
    for table, values in rows:
        tx.conn.execute(sa.insert(table), values)
    tx.news.extend(_news(made))
    return made


def _key_is_free(standing: Job, now: int) -> bool:
    """A key lives for a day, and starts anew after an error that a retry can help."""
    failed = standing.status == "fail" and standing.error is not None and standing.error.retryable
    return failed or standing.created_at < now - KEY_LIFETIME_US


def _moved(tx: Tx, job_id: str, steps: Sequence[Step]) -> Job:
    if len(steps) == 1:
        return _step(tx, job_id, steps[0])
    with tx.conn.begin_nested():
        return [_step(tx, job_id, step) for step in steps][-1]


def _step(tx: Tx, job_id: str, step: Step) -> Job:
    """One move: the guarded update, its event, its decision."""
    move = MOVES[step.verb]
    values = _values(tx, step)
    guards = [_guard(guard, step, tx.now) for guard in move.guards]
    update = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(move.sources), *guards)
    row = tx.conn.execute(update.values(values).returning(*_EVERY_COLUMN)).mappings().one_or_none()
    if row is None:
        raise _refusal(tx, job_id, step)
    job = Job(**row)
    data = _changed(job, step.verb, values) | dict(step.note)
    tx.conn.execute(sa.insert(events), _event(job, step.verb, step.actor, data))
    if step.decision is not None:
        _record(tx, job, step.decision)
    tx.news.extend(_news(job))
    return job


def _values(tx: Tx, step: Step) -> dict[str, Any]:
    move = MOVES[step.verb]
    return {
        "status": step.to or move.targets[0],
        "seq": jobs.c.seq + 1,
        "updated_at": tx.now,
        **dict.fromkeys(move.clears),
        **{column: jobs.c[column] + more for column, more in move.adds.items()},
        **step.changes,
        **{column: tx.now + round(seconds * 1_000_000) for column, seconds in step.after_seconds.items()},
    }


def _guard(guard: Guard, step: Step, now: int) -> ColumnElement[bool]:
    """What `guard` means in SQL."""
    return _GUARDS[guard](step, now)


def _unopened(step: Step, now: int) -> ColumnElement[bool]:
    mine = jobs.c.review_lease.is_(None) | (jobs.c.review_lease == step.reviewer)
    return mine | (jobs.c.review_lease_until < now)


_GUARDS: dict[Guard, Callable[[Step, int], ColumnElement[bool]]] = {
    Guard.DUE: lambda _, now: jobs.c.lease.is_(None) & (jobs.c.due_at <= now),
    Guard.LEASE: lambda step, _: jobs.c.lease == step.lease,
    Guard.LAPSED: lambda _, now: jobs.c.lease.is_not(None) & (jobs.c.lease_until < now),
    Guard.ROUND: lambda step, _: jobs.c.round == step.round,
    Guard.UNOPENED: _unopened,
    Guard.UNDECIDED: lambda _, __: jobs.c.release_at.is_(None),
    Guard.DECIDED: lambda _, __: jobs.c.release_at.is_not(None),
    Guard.UNRELEASED: lambda _, now: jobs.c.release_at > now,
    Guard.RELEASED: lambda _, now: jobs.c.release_at <= now,
    Guard.OVERDUE: lambda _, now: jobs.c.review_deadline <= now,
}


def _refusal(tx: Tx, job_id: str, step: Step) -> Stale | JobNotFound:
    row = tx.conn.execute(
        sa.select(jobs.c.status, jobs.c.decision, jobs.c.review_lease).where(jobs.c.id == job_id)
    ).one_or_none()
    if row is None:
        return JobNotFound(f"There is no job {job_id}.")
    decision: Decision | None = row.decision
    winner = f"; {decision.reviewer} decided: {decision.verdict}" if decision else ""
    opened = f"; {row.review_lease} has it open" if row.review_lease not in {None, step.reviewer} else ""
    return Stale(f"The job is {row.status}{winner}{opened}; it cannot {step.verb} now.", job_id=job_id)


def _news(job: Job) -> list[tuple[Topic, str]]:
    waits = job.status == "bot" and job.lease is None
    return [("job", job.id), ("due", job.id)] if waits else [("job", job.id)]


def _record(tx: Tx, job: Job, decision: Decision) -> None:
    """The vote and the decision of this round, for good; one a round, by the primary key."""
    place = {"job_id": job.id, "round": job.round, "at": tx.now}
    tx.conn.execute(sa.insert(votes), place | {"reviewer": decision.reviewer, "verdict": decision.verdict})
    tx.conn.execute(sa.insert(decisions), place | {"decision": decision})


def _claimed(tx: Tx, actor: str, lease: str, limit: int, lease_seconds: float) -> list[Job]:
    step = Step(
        verb="claim",
        actor=actor,
        changes={"lease": lease},
        after_seconds={"lease_until": lease_seconds},
    )
    due = (
        sa.select(jobs.c.id)
        .where(jobs.c.status == "bot", jobs.c.lane == "later", _guard(Guard.DUE, step, tx.now))
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    values = _values(tx, step)
    update = sa.update(jobs).where(jobs.c.id.in_(sa.select(due.c.id))).values(values).returning(*_EVERY_COLUMN)
    claimed = [Job(**row) for row in tx.conn.execute(update).mappings()]
    if claimed:
        rows = [_event(job, "claim", actor, _changed(job, "claim", values)) for job in claimed]
        tx.conn.execute(sa.insert(events), rows)
    return sorted(claimed, key=lambda job: (-job.priority, job.id))


def _renewed(tx: Tx, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
    until = tx.now + round(lease_seconds * 1_000_000)
    update = sa.update(jobs).where(jobs.c.id.in_(list(leases)), jobs.c.lease.in_(set(leases.values())))
    rows = tx.conn.execute(update.values(lease_until=until).returning(jobs.c.id, jobs.c.lease)).all()
    return {row.id for row in rows if leases[row.id] == row.lease}


def _filters(which: JobFilter) -> list[ColumnElement[bool]]:
    filters = list[ColumnElement[bool]]()
    if which.user_id is not None:
        filters.append(jobs.c.user_id == which.user_id)
    if which.status is not None:
        filters.append(jobs.c.status == which.status)
    if which.after_id is not None:
        filters.append(jobs.c.id < which.after_id if which.newest_first else jobs.c.id > which.after_id)
    return filters


def _timed(job: Job, now: int, due_seconds: float, lease_seconds: float | None) -> Job:
    return msgspec.structs.replace(
        job,
        created_at=now,
        updated_at=now,
        due_at=now + round(due_seconds * 1_000_000),
        lease_until=None if lease_seconds is None else now + round(lease_seconds * 1_000_000),
    )


def _row(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in Job.__struct_fields__}


def _light(job: Job) -> dict[str, Any]:
    """What a job was made with, but for its body and its answer, which stand in the row."""
    names = (name for name in Job.__struct_fields__ if name not in {*_HEAVY, "seq", "updated_at"})
    made = {name: value for name in names if (value := getattr(job, name)) is not None}
    return made | {"metadata": msgspec.Raw(job.metadata)}


def _changed(job: Job, verb: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The changed columns as they are now; an answer only where a verdict may replace it in the row."""
    changed = {column: getattr(job, column) for column in values if column not in {*_HEAVY, "seq", "updated_at"}}
    if verb in _KEEPS_RESPONSE and job.response is not None:
        changed["response"] = msgspec.Raw(job.response)
    return changed


def _event(job: Job, verb: str, actor: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"job_id": job.id, "seq": job.seq, "verb": verb, "actor": actor, "at": job.updated_at, "data": data}
