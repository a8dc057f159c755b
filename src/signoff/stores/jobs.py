"""Jobs as SQL: how they come in, how they are leased, and how they are looked up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.filters import JobFilter
from signoff.core.job import TERMINAL, Event, Job, Status
from signoff.errors import Overloaded
from signoff.store import InitialVerb, TransitionRequest
from signoff.stores.database import WRITE_TIMEOUT_SECONDS, Database
from signoff.stores.schema import decisions, deliveries, events, function_calls, jobs, used_keys, votes
from signoff.stores.transitions import (
    EVERY_COLUMN,
    SECOND,
    apply_transition,
    claim_jobs,
    deliver_end,
    event_of,
    job_of,
    news_of,
    standing,
)
from signoff.stores.usage import keep_sums
from signoff.stores.writer import Tx

T = TypeVar("T")
KEY_LIFETIME_US = 24 * 3600 * SECOND
IDS_AT_ONCE = 1000
AGAIN_SECONDS = 0.1
ROWS_BEHIND = 128  # about what is written in 20 ms: a crash costs no more of the log
_STANDS_IN_THE_ROW = {"body", "response", "deliver", "seq", "updated_at"}


class SqlJobs:
    """Jobs in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._behind = asyncio.Semaphore(ROWS_BEHIND)
        self._again = set[asyncio.Task[None]]()

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
            return inserted(tx, timed(job, tx.now, due_seconds, lease_seconds), verb, actor)

        def join(tx: Tx) -> Job:
            return _standing(tx, job) or _named(tx, insert(tx))

        if job.client_id is None and job.idempotency_key is None:
            return await self._database.write(insert)
        try:
            return await self._database.write(join)
        except IntegrityError:  # another process was a moment faster; now its job stands there
            return await self._database.write(join)

    async def insert_ended(self, job: Job, *, actor: str, verbs: Sequence[str]) -> asyncio.Future[Job]:
        """See `store.Jobs`."""

        def insert(tx: Tx) -> Job:
            return inserted(tx, timed(job, tx.now, 0, None), verbs[-1], actor, moves=list(verbs))

        await self._place_behind()
        try:
            done = await self._database.enqueue(insert)
        except BaseException:
            self._behind.release()
            raise
        written: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        written.add_done_callback(lambda _: self._behind.release())
        done.add_done_callback(lambda done: self._tell(written, done, insert))
        return written

    async def _place_behind(self) -> None:
        """Room for one more row behind its answer. Raises Overloaded when there is none for long."""
        if not self._behind.locked():  # a timeout costs more than the rest
            await self._behind.acquire()
            return
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
                await self._behind.acquire()
        except TimeoutError:
            raise Overloaded("The database has not taken the log for too long.") from None

    def _tell(self, written: asyncio.Future[Job], done: asyncio.Future[Job], insert: Callable[[Tx], Job]) -> None:
        """Passes on what came of a row, unless the database was away: its caller has the answer, so it is kept."""
        if written.done():
            return
        if done.cancelled():
            written.cancel()
        elif isinstance(error := done.exception(), Overloaded):
            task = asyncio.get_running_loop().create_task(self._write_again(written, insert))
            self._again.add(task)
            task.add_done_callback(self._again.discard)
        elif error is not None:
            written.set_exception(error)
        else:
            written.set_result(done.result())

    async def _write_again(self, written: asyncio.Future[Job], insert: Callable[[Tx], Job]) -> None:
        await asyncio.sleep(AGAIN_SECONDS)
        try:
            done = await self._database.enqueue(insert)
        except Overloaded as closed:
            if not written.done():
                written.set_exception(closed)
        else:
            done.add_done_callback(lambda done: self._tell(written, done, insert))

    async def transition(self, job_id: str, *steps: TransitionRequest) -> Job:
        """See `store.Jobs`."""
        return await self._database.write(lambda tx: apply_transition(tx, job_id, *steps))

    async def claim(
        self, *, actor: str, lease: str, limit: int, lease_seconds: float, full: Sequence[str] = ()
    ) -> list[Job]:
        """See `store.Jobs`."""
        changes, after = {"lease": lease}, {"lease_until": lease_seconds}
        step = TransitionRequest(verb="claim", actor=actor, changes=changes, after_seconds=after)
        return await self._database.write(lambda tx: claim_jobs(tx, step, limit, full))

    async def renew(self, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
        """See `store.Jobs`."""
        return await self._database.write(lambda tx: _renewed(tx, list(leases.items()), lease_seconds))

    async def get(self, job_id: str) -> Job | None:
        """See `store.Jobs`."""
        row = await self._database.read(lambda conn, _: conn.execute(_BY_ID, {"job": job_id}).one_or_none())
        return None if row is None else job_of(row)

    async def by_client_id(self, user_id: int, client_id: str) -> Job | None:
        """See `store.Jobs`."""
        name = {"user": user_id, "client_id": client_id}
        row = await self._database.read(lambda conn, _: conn.execute(_BY_CLIENT_ID, name).one_or_none())
        return None if row is None else job_of(row)

    async def statuses(self, job_ids: Sequence[str]) -> dict[str, tuple[Status, int]]:
        """See `store.Jobs`."""

        def read(conn: sa.Connection, _: object) -> list[Any]:
            return [row for ids in _parts(job_ids) for row in conn.execute(_STATUSES, {"jobs": ids})]

        return {row.id: (row.status, row.seq) for row in await self._database.read(read)}

    async def list(self, which: JobFilter) -> list[Job]:
        """See `store.Jobs`."""
        query = sa.select(*EVERY_COLUMN).where(*_filters(which)).offset(which.offset).limit(which.limit)
        query = query.order_by(jobs.c.id.desc() if which.newest_first else jobs.c.id)
        rows = await self._database.read(lambda conn, _: conn.execute(query).all())
        return [job_of(row) for row in rows]

    async def count(self, which: JobFilter) -> int:
        """See `store.Jobs`."""
        query = sa.select(sa.func.count()).select_from(jobs).where(*_filters(which))
        return await self._database.read(lambda conn, _: conn.execute(query).scalar_one())

    async def events(self, job_id: str) -> list[Event]:
        """See `store.Jobs`."""
        rows = await self._database.read(lambda conn, _: conn.execute(_EVENTS, {"job": job_id}).mappings().all())
        return [_event_of(row) for row in rows]

    async def lapsed(self, limit: int) -> list[Job]:
        """See `store.Jobs`."""
        return await self._standing("lapse", limit)

    async def released(self, limit: int) -> list[Job]:
        """See `store.Jobs`."""
        return await self._standing("approve", limit)

    async def overdue(self, limit: int) -> list[Job]:
        """See `store.Jobs`."""
        return await self._standing("expire", limit)

    async def purge(self, older_than_seconds: float, limit: int) -> int:
        """See `store.Jobs`."""
        return await self._database.write(lambda tx: _purged(tx, older_than_seconds, limit))

    async def _standing(self, verb: str, limit: int) -> list[Job]:
        """The jobs for which the guards of `verb` hold at this moment."""
        query = standing(verb)
        rows = await self._database.read(lambda conn, now: conn.execute(query, {"now": now(), "limit": limit}).all())
        return [job_of(row) for row in rows]


_JOB = sa.bindparam("job", type_=sa.Text)
_BY_ID = sa.select(*EVERY_COLUMN).where(jobs.c.id == _JOB)
_EVENTS = sa.select(*events.c).where(events.c.job_id == _JOB).order_by(events.c.seq)
_STATUSES = sa.select(jobs.c.id, jobs.c.status, jobs.c.seq).where(jobs.c.id.in_(sa.bindparam("jobs", expanding=True)))


# Columns that were renamed in revision 0010. Events that were written before it carry the old names.
_RENAMED = {
    "made": "upstream_object_id",
    "own_id": "client_id",
    "first_us": "ttft_us",
    "answer_us": "generation_us",
}


def _event_of(row: sa.RowMapping) -> Event:
    event = Event(**row)
    return msgspec.structs.replace(event, data={_RENAMED.get(name, name): value for name, value in event.data.items()})


def inserted(tx: Tx, job: Job, verb: str, actor: str, **note: Any) -> Job:
    """`job`, written at the end of the group, with the event of `verb`."""
    row = msgspec.structs.asdict(job)
    tx.add(events, event_of(job, verb, actor, _made(row) | note))
    tx.add(jobs, row)
    tx.changes.extend(news_of(job))
    deliver_end(tx, job, verb)
    return job


def timed(job: Job, now: int, due_seconds: float, lease_seconds: float | None) -> Job:
    """`job` as it is when it is made."""
    return msgspec.structs.replace(
        job,
        created_at=now,
        updated_at=now,
        due_at=now + round(due_seconds * SECOND),
        lease_until=None if lease_seconds is None else now + round(lease_seconds * SECOND),
    )


def _made(row: dict[str, Any]) -> dict[str, Any]:
    """What a job was made with, but for its body and its answer."""
    made = {name: value for name, value in row.items() if value is not None and name not in _STANDS_IN_THE_ROW}
    return made | {"metadata": msgspec.Raw(row["metadata"])}


def _standing(tx: Tx, job: Job) -> Job | None:
    """The job that already has the own id of `job`, or its key."""
    if job.client_id is not None:
        row = tx.conn.execute(_BY_CLIENT_ID, {"user": job.user_id, "client_id": job.client_id}).one_or_none()
        if row is not None:
            return job_of(row)
    return None if job.idempotency_key is None else _standing_under_key(tx, job)


def _standing_under_key(tx: Tx, job: Job) -> Job | None:
    """The job that the key of `job` stands for, where the key is not free (any more)."""
    key = {"user": job.user_id, "key": job.idempotency_key}
    row = tx.conn.execute(_BY_KEY, key).one_or_none()
    if row is None:
        return None
    found = job_of(row)
    if not _frees_its_key(found, tx.now):
        return found
    tx.conn.execute(_FREE_KEY, key | {"job": found.id})  # and not what another process has put there meanwhile
    return None


def _frees_its_key(job: Job, now: int) -> bool:
    """A key lives for a day, and starts anew after an error that a retry can help."""
    failed = job.status == "fail" and job.error is not None and job.error.retryable
    return failed or job.created_at < now - KEY_LIFETIME_US


def _named(tx: Tx, job: Job) -> Job:
    """`job`, with its own id and its key taken, for the rest of the group to see."""
    if job.idempotency_key is not None:
        tx.add(used_keys, {"user_id": job.user_id, "key": job.idempotency_key, "job_id": job.id})
    tx.flush()
    return job


_SAME_KEY = (used_keys.c.user_id == sa.bindparam("user", type_=sa.Integer)) & (
    used_keys.c.key == sa.bindparam("key", type_=sa.Text)
)
_BY_CLIENT_ID = sa.select(*EVERY_COLUMN).where(
    jobs.c.user_id == sa.bindparam("user", type_=sa.Integer),
    jobs.c.client_id == sa.bindparam("client_id", type_=sa.Text),
)
_BY_KEY = sa.select(*EVERY_COLUMN).join(used_keys, used_keys.c.job_id == jobs.c.id).where(_SAME_KEY)
_FREE_KEY = sa.delete(used_keys).where(_SAME_KEY, used_keys.c.job_id == _JOB)


def _renewed(tx: Tx, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
    until = tx.now + round(lease_seconds * SECOND)
    return {
        job_id
        for part in _parts(leases)
        for job_id in tx.conn.execute(
            _RENEW, {"jobs": [job_id for job_id, _ in part], "leases": part, "new_lease_until": until}
        ).scalars()
    }


_RENEW = (
    sa.update(jobs)
    .where(
        jobs.c.id.in_(sa.bindparam("jobs", expanding=True)),  # SQLite has no index for the pairs
        sa.tuple_(jobs.c.id, jobs.c.lease).in_(sa.bindparam("leases", expanding=True)),
    )
    .values(lease_until=sa.bindparam("new_lease_until", type_=sa.BigInteger))
    .returning(jobs.c.id)
)


def _purged(tx: Tx, older_than_seconds: float, limit: int) -> int:
    before = tx.now - round(older_than_seconds * SECOND)
    ids = tx.conn.execute(_OLD, {"before": before, "limit": limit}).scalars().all()
    if ids:
        keep_sums(tx, ids)
        for table in (events, votes, decisions, deliveries, used_keys, function_calls):
            tx.conn.execute(sa.delete(table).where(table.c.job_id.in_(ids)))
        tx.conn.execute(sa.delete(jobs).where(jobs.c.id.in_(ids)))
    return len(ids)


# Who waits to be told of a job's end is told first.
_UNTOLD = sa.exists().where(deliveries.c.job_id == jobs.c.id, deliveries.c.state == "due")
_RUNS = jobs.alias("runs")
_RUN_GOES_ON = sa.exists().where(_RUNS.c.id == jobs.c.parent_id, _RUNS.c.status.not_in(TERMINAL))
# Statuses stand in the text of the statement, or its partial index would not serve it.
_OLD = (
    sa.select(jobs.c.id)
    .where(
        jobs.c.status.in_([sa.literal_column(f"'{status}'") for status in sorted(TERMINAL)]),
        jobs.c.updated_at < sa.bindparam("before", type_=sa.BigInteger),
        ~_UNTOLD,
        ~_RUN_GOES_ON,
    )
    .limit(sa.bindparam("limit", type_=sa.Integer))
    .with_for_update(skip_locked=True, of=jobs)  # what another process forgets is in its sums
)


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """`items` in parts that fit into one statement."""
    return (items[start : start + IDS_AT_ONCE] for start in range(0, len(items), IDS_AT_ONCE))


def _filters(which: JobFilter) -> list[ColumnElement[bool]]:
    filters = list[ColumnElement[bool]]()
    if which.user_id is not None:
        filters.append(jobs.c.user_id == which.user_id)
    if which.status is not None:
        filters.append(jobs.c.status == which.status)
    if not which.with_steps:
        filters.append(jobs.c.parent_id.is_(None))
    if which.fingerprint is not None:
        filters.append(jobs.c.fingerprint == which.fingerprint)
    if which.upstream_object_id is not None:
        filters.append(jobs.c.upstream_object_id == which.upstream_object_id)
    if which.after_id is not None:
        filters.append(jobs.c.id < which.after_id if which.newest_first else jobs.c.id > which.after_id)
    return filters
