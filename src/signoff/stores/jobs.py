"""Jobs, in SQL: insertion, leases, queries and deletion."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from signoff.core.backlog import Backlog, JobQueueDepth
from signoff.core.filters import JobFilter, Page
from signoff.core.job import TERMINAL, Event, Job, Status
from signoff.core.times import DAY_US, SECOND_US
from signoff.core.turn import FIRST_TURN, Turn
from signoff.errors import id_taken
from signoff.store import InitialVerb, TransitionListener, TransitionRequest
from signoff.stores.batches_schema import IS_UNENDED, batches
from signoff.stores.calls import encode_call, event_of_call, insert_call, job_of_call, read_call
from signoff.stores.changes import TransitionFeed
from signoff.stores.claims import claim_jobs
from signoff.stores.created_objects import add_created_objects
from signoff.stores.database import Database
from signoff.stores.deletion import delete_calls, delete_jobs
from signoff.stores.job_pages import BACKLOG, chunked, count_statement, read_page
from signoff.stores.queue_depths import read_queue_depths
from signoff.stores.schema import (
    calls,
    deliveries,
    events,
    jobs,
    used_keys,
)
from signoff.stores.transaction import Tx
from signoff.stores.transitions import (
    EVERY_COLUMN,
    changes_of,
    create_deliveries,
    event_of,
    initial_data,
    job_of,
    read_job,
    select_eligible,
    transition_operation,
)
from signoff.stores.usage import count_ended

KEY_LIFETIME_US = DAY_US
# The user id of keys that are unique among all users; no user has it.
ALL_USERS = -2


class SqlJobs:
    """Jobs and their events in a SQL database; see `store.Jobs`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._feed = TransitionFeed()

    def observe(self, listener: TransitionListener) -> None:
        """See `store.Jobs`."""
        self._feed.observe(listener)

    async def insert(
        self,
        job: Job,
        *,
        actor: str,
        verb: InitialVerb = "submit",
        due_seconds: float = 0,
        lease_seconds: float | None = None,
    ) -> Job:
        """See `store.Jobs`."""

        def insert(tx: Tx) -> Job:
            return insert_job(tx, with_times(job, tx.now, due_seconds, lease_seconds), verb, actor)

        def find_or_insert(tx: Tx) -> Job:
            existing, expired = _find_existing(tx.conn, job, tx.now)
            if existing is not None:
                return existing
            if expired is not None:  # the condition on the job keeps a key that another process has inserted meanwhile
                tx.conn.execute(_FREE_KEY, _key_of(job) | {"job": expired.id})
            _take_result_key(tx, job)
            return _add_unique_keys(tx, insert(tx))

        if job.client_id is None and job.idempotency_key is None:
            return await self._database.write(insert)
        lock_key = f"key {job.idempotency_key or job.client_id}"
        try:
            return await self._database.write(find_or_insert, lock_key=lock_key)
        except IntegrityError:  # another process inserted such a job at the same time: now there is one to return
            return await self._database.write(find_or_insert, lock_key=lock_key)

    async def existing(self, job: Job) -> Job | None:
        """See `store.Jobs`."""
        return await self._database.read(lambda conn, now: _find_existing(conn, job, now())[0])

    async def insert_ended(self, job: Job, *, actor: str, verbs: Sequence[str]) -> Job:
        """See `store.Jobs`."""

        def insert(tx: Tx) -> Job:
            # One event stands for all transitions: it has the verb of the last one, and `moves` lists them all.
            return insert_job(tx, with_times(job, tx.now, 0, None), verbs[-1], actor, moves=list(verbs))

        return await self._database.write(insert)

    def log_call(
        self, job: Job, *, actor: str, verbs: Sequence[str], at_once: bool = False
    ) -> Awaitable[asyncio.Future[int]]:
        """See `store.Jobs`."""
        add = partial(insert_call, job=job, data=encode_call(job, actor=actor, verbs=verbs))
        return self._database.defer(add, at_once=at_once)

    async def transition(self, job_id: str, *steps: TransitionRequest) -> Job:
        """See `store.Jobs`."""
        job = await self._database.write(transition_operation(job_id, *steps), lock_key=job_id)
        self._feed.publish(job, steps)
        return job

    async def claim(
        self, *, actor: str, lease: str, limit: int, lease_seconds: float, turn: Turn = FIRST_TURN
    ) -> list[Job]:
        """See `store.Jobs`."""
        changes, after = {"lease": lease}, {"lease_until": lease_seconds}
        request = TransitionRequest(verb="claim", actor=actor, changes=changes, after_seconds=after)
        claimed = await self._database.write(lambda tx: claim_jobs(tx, request, limit, turn))
        for job in claimed:
            self._feed.publish(job, [request])
        return claimed

    async def renew(self, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
        """See `store.Jobs`."""
        return await self._database.write(lambda tx: _renew(tx, list(leases.items()), lease_seconds))

    async def get(self, job_id: str) -> Job | None:
        """See `store.Jobs`."""
        return await self._database.read(lambda conn, _: _read_job(conn, job_id))

    async def by_client_id(self, user_id: int, client_id: str) -> Job | None:
        """See `store.Jobs`."""
        key = {"user": user_id, "client_id": client_id}
        row = await self._database.read(lambda conn, _: conn.execute(_NEWEST_BY_CLIENT_ID, key).one_or_none())
        return None if row is None else job_of(row)

    async def statuses(self, job_ids: Sequence[str]) -> dict[str, tuple[Status, int]]:
        """See `store.Jobs`."""

        def read(conn: sa.Connection, _: object) -> list[Any]:
            return [row for ids in chunked(job_ids) for row in conn.execute(_STATUSES, {"jobs": ids})]

        return {row.id: (row.status, row.seq) for row in await self._database.read(read)}

    async def list(self, filters: JobFilter) -> Page[Job]:
        """See `store.Jobs`."""
        return await self._database.read(lambda conn, _: read_page(conn, filters))

    async def count(self, filters: JobFilter, *, at_most: int) -> int:
        """See `store.Jobs`."""
        query = count_statement(filters, at_most)
        return await self._database.read(lambda conn, _: conn.execute(query).scalar_one())

    async def backlog(self, user_id: int, *, at_most: int) -> Backlog:
        """See `store.Jobs`."""
        parameters = {"user": user_id, "limit": at_most}
        row = await self._database.read(lambda conn, _: conn.execute(BACKLOG, parameters).one())
        return Backlog(*row)

    async def queue_depths(self, *, at_most: int) -> list[JobQueueDepth]:
        """See `store.Jobs`."""
        return await self._database.read(lambda conn, now: read_queue_depths(conn, now(), at_most))

    async def events(self, job_id: str) -> list[Event]:
        """See `store.Jobs`."""
        return await self._database.read(lambda conn, _: _read_events(conn, job_id))

    async def lapsed(self, limit: int) -> list[Job]:
        """See `store.Jobs`."""
        return await self._load_eligible("lapse", limit)

    async def due_for_release(self, limit: int) -> list[Job]:
        """See `store.Jobs`."""
        return await self._load_eligible("approve", limit)

    async def overdue(self, limit: int) -> list[Job]:
        """See `store.Jobs`."""
        return await self._load_eligible("expire", limit)

    async def purge(self, older_than_seconds: float, limit: int) -> int:
        """See `store.Jobs`."""
        return await self._database.write(lambda tx: _purge(tx, older_than_seconds, limit))

    async def _load_eligible(self, verb: str, limit: int) -> list[Job]:
        """Return jobs for which the guards of `verb` hold now, apart from those that depend on the actor."""
        query = select_eligible(verb)
        rows = await self._database.read(lambda conn, now: conn.execute(query, {"now": now(), "limit": limit}).all())
        return [job_of(row) for row in rows]


def _read_job(conn: sa.Connection, job_id: str) -> Job | None:
    job = read_job(conn, _BY_ID, job_id)
    if job is not None:
        return job
    call = read_call(conn, job_id)
    return None if call is None else job_of_call(call)


def _read_events(conn: sa.Connection, job_id: str) -> list[Event]:
    rows = conn.execute(_EVENTS, {"job": job_id}).mappings().all()
    if rows or (call := read_call(conn, job_id)) is None:
        return [_event_from(row) for row in rows]
    return [event_of_call(call)]


_JOB = sa.bindparam("job", type_=sa.Text)
_BY_ID = sa.select(*EVERY_COLUMN).where(jobs.c.id == _JOB)
_EVENTS = sa.select(*events.c).where(events.c.job_id == _JOB).order_by(events.c.seq)
_IDS = sa.bindparam("jobs", type_=sa.Text, expanding=True)
_STATUSES = sa.union_all(
    sa.select(jobs.c.id, jobs.c.status, jobs.c.seq).where(jobs.c.id.in_(_IDS)),
    sa.select(calls.c.id, calls.c.status, sa.literal(1).label("seq")).where(calls.c.id.in_(_IDS)),
)


# Events that were written before revision 0010 have the old names of these columns.
_RENAMED = {"made": "upstream_object_id", "own_id": "client_id", "first_us": "ttft_us", "answer_us": "generation_us"}


def _event_from(row: sa.RowMapping) -> Event:
    event = Event(**row)
    return msgspec.structs.replace(event, data={_RENAMED.get(name, name): value for name, value in event.data.items()})


def insert_job(tx: Tx, job: Job, verb: str, actor: str, **note: Any) -> Job:
    """Add the rows of a new job, its first event and its deliveries to the transaction, and return `job`.

    `note` is additional data for the event.
    """
    tx.add(events, event_of(job, verb, actor, initial_data(job) | note))
    tx.add(jobs, msgspec.structs.asdict(job))
    add_created_objects(tx, job)
    if job.is_terminal:
        count_ended(tx, job, job.created_at)
    tx.changes.extend(changes_of(job))
    create_deliveries(tx, job, verb)
    return job


def with_times(job: Job, now: int, due_seconds: float, lease_seconds: float | None) -> Job:
    """Return `job` with the times of a job that is created at `now`, in microseconds."""
    return msgspec.structs.replace(
        job,
        created_at=now,
        updated_at=now,
        due_at=now + round(due_seconds * SECOND_US),
        lease_until=None if lease_seconds is None else now + round(lease_seconds * SECOND_US),
    )


def _find_existing(conn: sa.Connection, job: Job, now: int) -> tuple[Job | None, Job | None]:
    """Return the job of the same user and door with the `client_id` of `job`, or of the same user with its key.

    Return as well the job that has the key, if that is free again.
    """
    if job.client_id is not None:
        key = {"user": job.user_id, "client_id": job.client_id, "door": job.door}
        row = conn.execute(_BY_CLIENT_ID, key).one_or_none()
        if row is not None:
            return job_of(row), None
    holder = _find_by_key(conn, job)
    return (None, holder) if holder is not None and _is_key_free(holder, now) else (holder, None)


def _find_by_key(conn: sa.Connection, job: Job) -> Job | None:
    """Return the job that has the idempotency key of `job`, also if the key is free again."""
    row = None if job.idempotency_key is None else conn.execute(_BY_KEY, _key_of(job)).one_or_none()
    return None if row is None else job_of(row)


def _key_of(job: Job) -> dict[str, Any]:
    return {"user": job.user_id, "key": job.idempotency_key}


def _is_key_free(job: Job, now: int) -> bool:
    """Return True if the key of `job` may be used for another job: after a day, or after a retryable error."""
    failed = job.status == "fail" and job.error is not None and job.error.retryable
    return failed or job.created_at < now - KEY_LIFETIME_US


def result_key_of(job: Job) -> str | None:
    """Return the key in Redis that `job` names by its client id; None if it has none."""
    if job.client_id is None:
        return None
    addresses = (target.address for target in job.deliver if target.kind == "redis")
    return next((address for address in addresses if address.endswith(f":{job.client_id}")), None)


def _take_result_key(tx: Tx, job: Job) -> None:
    """Raise IdTaken if a job of another user has the key for the result of `job`; take it from one of the same user."""
    key = result_key_of(job)
    row = None if key is None else tx.conn.execute(_BY_KEY, {"user": ALL_USERS, "key": key}).one_or_none()
    if row is None:
        return
    existing = job_of(row)
    if existing.user_id != job.user_id:
        raise id_taken(job.client_id or "")
    tx.conn.execute(_FREE_KEY, {"user": ALL_USERS, "key": key, "job": existing.id})


def _add_unique_keys(tx: Tx, job: Job) -> Job:
    """Add the keys of `job` that are unique, and send all added rows, so that later operations of this group find them.

    These are its idempotency key, and its key in Redis, which all users share.
    """
    keys = ((job.user_id, job.idempotency_key), (ALL_USERS, result_key_of(job)))
    for user_id, key in keys:
        if key is not None:
            tx.add(used_keys, {"user_id": user_id, "key": key, "job_id": job.id})
    tx.flush()
    return job


_HAS_KEY = (used_keys.c.user_id == sa.bindparam("user", type_=sa.Integer)) & (
    used_keys.c.key == sa.bindparam("key", type_=sa.Text)
)
_WITH_CLIENT_ID = sa.select(*EVERY_COLUMN).where(
    jobs.c.user_id == sa.bindparam("user", type_=sa.Integer),
    jobs.c.client_id == sa.bindparam("client_id", type_=sa.Text),
)
_BY_CLIENT_ID = _WITH_CLIENT_ID.where(jobs.c.door == sa.bindparam("door", type_=sa.Text))
_NEWEST_BY_CLIENT_ID = _WITH_CLIENT_ID.order_by(jobs.c.id.desc()).limit(1)
_BY_KEY = sa.select(*EVERY_COLUMN).join(used_keys, used_keys.c.job_id == jobs.c.id).where(_HAS_KEY)
_FREE_KEY = sa.delete(used_keys).where(_HAS_KEY, used_keys.c.job_id == _JOB)


def _renew(tx: Tx, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
    """Extend leases, given as (job id, lease); return the ids of the jobs that still have them."""
    until, renewed = tx.now + round(lease_seconds * SECOND_US), set[str]()
    for chunk in chunked(sorted(leases)):
        job_ids = [job_id for job_id, _ in chunk]
        tx.conn.execute(_LOCK_IN_ORDER, {"jobs": job_ids})
        renewed |= set(tx.conn.execute(_RENEW, {"jobs": job_ids, "leases": chunk, "new_lease_until": until}).scalars())
    return renewed


_LOCK_IN_ORDER = (
    sa.select(jobs.c.id)
    .where(jobs.c.id.in_(sa.bindparam("jobs", type_=sa.Text, expanding=True)))
    .order_by(jobs.c.id)
    .with_for_update()
)
_RENEW = (
    sa.update(jobs)
    .where(
        # SQLite uses an index for this condition, not for the pairs.
        jobs.c.id.in_(sa.bindparam("jobs", expanding=True)),
        sa.tuple_(jobs.c.id, jobs.c.lease).in_(sa.bindparam("leases", expanding=True)),
    )
    .values(lease_until=sa.bindparam("new_lease_until", type_=sa.BigInteger))
    .returning(jobs.c.id)
)


def _purge(tx: Tx, older_than_seconds: float, limit: int) -> int:
    """Delete at most `limit` ended jobs that are that old, with their rows in all tables; return their number."""
    before = tx.now - round(older_than_seconds * SECOND_US)
    ids = tx.conn.execute(_OLD, {"before": before, "limit": limit}).scalars().all()
    call_ids = tx.conn.execute(_OLD_CALLS, {"before": before, "limit": limit - len(ids)}).scalars().all()
    delete_jobs(tx, ids)
    delete_calls(tx, call_ids)
    return len(ids) + len(call_ids)


# A job stays until its deliveries have ended, a step of a pipeline until its run has, and a line until its batch has.
_HAS_DUE_DELIVERY = sa.exists().where(deliveries.c.job_id == jobs.c.id, deliveries.c.state == "due")
_RUNS = jobs.alias("runs")
_BATCH_IS_UNENDED = sa.exists().where(batches.c.id == jobs.c.batch_id, IS_UNENDED)
_RUN_IS_UNFINISHED = sa.exists().where(_RUNS.c.id == jobs.c.parent_id, _RUNS.c.status.not_in(TERMINAL))
# Statuses are literals in the statement, because a partial index cannot serve a parameter.
_OLD = (
    sa.select(jobs.c.id)
    .where(
        jobs.c.status.in_([sa.literal_column(f"'{status}'") for status in sorted(TERMINAL)]),
        jobs.c.updated_at < sa.bindparam("before", type_=sa.BigInteger),
        ~_HAS_DUE_DELIVERY,
        ~_RUN_IS_UNFINISHED,
        ~_BATCH_IS_UNENDED,
    )
    .limit(sa.bindparam("limit", type_=sa.Integer))
    .with_for_update(skip_locked=True, of=jobs)
)
_OLD_CALLS = (
    sa.select(calls.c.id)
    .where(calls.c.created_at < sa.bindparam("before", type_=sa.BigInteger))
    .limit(sa.bindparam("limit", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)
