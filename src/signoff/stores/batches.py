"""Batches and the jobs of their lines, in SQL."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from signoff.batches import LineCounts, NewLine
from signoff.core.batch import ENDED, Batch, BatchFilter, BatchStatus, BatchTotals, StoredFile
from signoff.core.filters import Page, page_length
from signoff.core.job import Job, JobError
from signoff.core.times import SECOND_US
from signoff.errors import JobNotFound, Stale
from signoff.store import TransitionRequest
from signoff.stores.batches_schema import IS_UNENDED, batches
from signoff.stores.database import Database
from signoff.stores.files import delete_files, insert_file
from signoff.stores.job_pages import jobs_by_id, sizes_of
from signoff.stores.jobs import KEY_LIFETIME_US, insert_job, with_times
from signoff.stores.schema import deliveries, jobs
from signoff.stores.transaction import Tx
from signoff.stores.transitions import apply_transition

_NAMES = Batch.__struct_fields__
_COLUMNS = tuple(batches.c[name] for name in _NAMES)
_CANCELLABLE = ("validating", "in_progress")
_CANCELLED = ("cancelling", "cancelled")


class SqlBatches:
    """Batches in a SQL database; see `batches.Batches`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, batch: Batch, *, window_seconds: float) -> Batch:
        """See `batches.Batches`."""
        try:
            return await self._database.write(lambda tx: _insert(tx, batch, window_seconds))
        except IntegrityError:  # another process inserted one with this key at the same time: now there is one
            return await self._database.write(lambda tx: _insert(tx, batch, window_seconds))

    async def by_key(self, user_id: int, idempotency_key: str) -> Batch | None:
        """See `batches.Batches`."""

        def read(conn: Connection, now: Callable[[], int]) -> Batch | None:
            row = conn.execute(_BY_KEY, {"user": user_id, "key": idempotency_key}).one_or_none()
            return None if row is None or row.created_at < now() - KEY_LIFETIME_US else _batch_of(row)

        return await self._database.read(read)

    async def get(self, batch_id: str) -> Batch | None:
        """See `batches.Batches`."""
        row = await self._database.read(lambda conn, _: conn.execute(_BY_ID, {"batch": batch_id}).one_or_none())
        return None if row is None else _batch_of(row)

    async def page(self, filters: BatchFilter) -> Page[Batch]:
        """See `batches.Batches`."""
        return await self._database.read(lambda conn, _: _read_page(conn, filters))

    async def cancel(self, batch_id: str) -> Batch:
        """See `batches.Batches`."""
        return await self._database.write(lambda tx: _cancel(tx, batch_id))

    async def delete(self, batch_id: str) -> bool:
        """See `batches.Batches`."""
        condition = (batches.c.id == batch_id) & batches.c.status.in_(sorted(ENDED))
        return await self._database.write(lambda tx: _delete(tx, condition, with_input=True)) == 1

    async def claim(self, *, lease: str, limit: int, lease_seconds: float) -> list[Batch]:
        """See `batches.Batches`."""
        return await self._database.write(lambda tx: _claim(tx, lease, limit, lease_seconds))

    async def renew(self, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
        """See `batches.Batches`."""

        def renew(tx: Tx) -> set[str]:
            until = tx.now + round(lease_seconds * SECOND_US)
            is_leased = sa.tuple_(batches.c.id, batches.c.lease).in_(list(leases.items()))
            update = sa.update(batches).where(batches.c.id.in_(leases), is_leased).values(lease_until=until)
            return set(tx.conn.execute(update.returning(batches.c.id)).scalars())

        return await self._database.write(renew) if leases else set()

    async def release(self, batch_id: str, lease: str, *, after_seconds: float) -> None:
        """See `batches.Batches`."""

        def release(tx: Tx) -> int:
            due_at = tx.now + round(after_seconds * SECOND_US)
            # A cancellation meanwhile has made it due at once, and must not wait.
            next_due = sa.case((batches.c.status == "cancelling", tx.now), else_=due_at)
            update = sa.update(batches).where(batches.c.id == batch_id, batches.c.lease == lease)
            return tx.conn.execute(update.values(lease=None, lease_until=None, due_at=next_due)).rowcount

        await self._database.write(release)

    async def change(
        self, batch_id: str, lease: str, status: BatchStatus, *, changes: Mapping[str, Any], now: Sequence[str] = ()
    ) -> Batch:
        """See `batches.Batches`."""

        def change(tx: Tx) -> Batch:
            return _change(tx, batch_id, lease, status, {**changes, **dict.fromkeys(now, tx.now)})

        return await self._database.write(change)

    async def add_lines(
        self, batch: Batch, lines: Sequence[NewLine], *, actor: str, next_line: int, next_byte: int
    ) -> Batch:
        """See `batches.Batches`."""

        def add(tx: Tx) -> Batch:
            place = {"next_line": next_line, "next_byte": next_byte}
            is_next = batches.c.next_line == batch.next_line
            changed = _change(tx, batch.id, batch.lease, "in_progress", place, is_next)
            for line in lines:
                verb = "submit" if not line.is_ended else ("hit" if line.job.status == "success" else "refuse")
                insert_job(tx, with_times(line.job, tx.now, 0, None), verb, actor)
            return changed

        return await self._database.write(add)

    async def cancel_lines(self, batch: Batch, error: JobError, *, actor: str, limit: int) -> int:
        """See `batches.Batches`."""
        return await self._database.write(lambda tx: _cancel_lines(tx, batch, error, actor, limit))

    async def finish(
        self,
        batch: Batch,
        status: BatchStatus,
        *,
        changes: Mapping[str, Any],
        output: StoredFile | None = None,
        errors: StoredFile | None = None,
    ) -> Batch:
        """See `batches.Batches`."""
        ids = {"output_file_id": output and output.id, "error_file_id": errors and errors.id}

        def finish(tx: Tx) -> Batch:
            end = {"status": status, f"{status}_at": tx.now, "lease": None, "lease_until": None}
            ended = _change(tx, batch.id, batch.lease, batch.status, {**changes, **ids, **end})
            for file in (output, errors):
                if file is not None:
                    insert_file(tx, file, lifetime_seconds=batch.output_seconds)
            delete_files(tx, _own_inputs(ended))
            _create_delivery(tx, ended)
            return ended

        return await self._database.write(finish)

    async def totals(self, batch_id: str) -> BatchTotals:
        """See `batches.Batches`."""
        rows = await self._database.read(lambda conn, _: conn.execute(_TOTALS, {"batch": batch_id}).all())
        numbers = {row.status: row.number for row in rows}
        return BatchTotals(completed=numbers.get("success", 0), failed=numbers.get("fail", 0))

    async def open_count(self, user_id: int, *, at_most: int) -> int:
        """See `batches.Batches`."""
        is_open = sa.select(batches.c.id).where(batches.c.user_id == user_id, IS_UNENDED).limit(at_most)
        query = sa.select(sa.func.count()).select_from(is_open.subquery())
        return await self._database.read(lambda conn, _: conn.execute(query).scalar_one())

    async def unended(self, batch_id: str, *, at_most: int) -> LineCounts:
        """See `batches.Batches`."""

        def read(conn: Connection, now: Callable[[], int]) -> LineCounts:
            expires_at = conn.execute(
                sa.select(batches.c.expires_at).where(batches.c.id == batch_id)
            ).scalar_one_or_none()
            if expires_at is None:
                raise Stale(f"The batch {batch_id} was deleted.")
            parameters = {"batch": batch_id, "limit": at_most}
            queued, held = (
                conn.execute(_OPEN, {"status": status, **parameters}).scalar_one() for status in ("bot", "human")
            )
            return LineCounts(queued, held, expires_at <= now())

        return await self._database.read(read)

    async def lines(self, batch_id: str, *, after_line: int, limit: int, max_bytes: int) -> list[Job]:
        """See `batches.Batches`."""

        def read(conn: Connection, _: object) -> list[Job]:
            parameters = {"batch": batch_id, "line": after_line, "limit": limit}
            ids = conn.execute(_LINES, parameters).scalars().all()
            ids = ids[: page_length(sizes_of(conn, ids), max_bytes)]
            by_id = jobs_by_id(conn, ids)
            return [by_id[job_id] for job_id in ids]

        return await self._database.read(read)

    async def purge(self, older_than_seconds: float, limit: int) -> int:
        """See `batches.Batches`."""

        def purge(tx: Tx) -> int:
            before = tx.now - round(older_than_seconds * SECOND_US)
            ended = [batches.c[f"{status}_at"] < before for status in sorted(ENDED)]
            is_old = (batches.c.status.in_(sorted(ENDED)), sa.or_(*ended), ~_HAS_DUE_DELIVERY)
            old = sa.select(batches.c.id).where(*is_old).limit(limit)
            ids = tx.conn.execute(old.with_for_update(skip_locked=True, of=batches)).scalars().all()
            return _delete(tx, batches.c.id.in_(ids), with_input=False) if ids else 0

        return await self._database.write(purge)


_HAS_DUE_DELIVERY = sa.exists().where(deliveries.c.job_id == batches.c.id, deliveries.c.state == "due")
_BATCH = sa.bindparam("batch", type_=sa.Text)
_BY_ID = sa.select(*_COLUMNS).where(batches.c.id == _BATCH)
_BY_KEY = sa.select(*_COLUMNS).where(
    batches.c.user_id == sa.bindparam("user", type_=sa.Integer),
    batches.c.idempotency_key == sa.bindparam("key", type_=sa.Text),
)
_IS_LINE = jobs.c.batch_id == _BATCH
_TOTALS = sa.select(jobs.c.status, sa.func.count().label("number")).where(_IS_LINE).group_by(jobs.c.status)
_OPEN = sa.select(sa.func.count()).select_from(
    sa.select(jobs.c.id)
    .where(_IS_LINE, jobs.c.status == sa.bindparam("status", type_=sa.Text))
    .limit(sa.bindparam("limit", type_=sa.Integer))
    .subquery()
)
_LINES = (
    sa.select(jobs.c.id)
    .where(_IS_LINE, jobs.c.batch_line > sa.bindparam("line", type_=sa.Integer))
    .order_by(jobs.c.batch_line)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_OPEN_JOBS = (
    sa.select(jobs.c.id)
    .where(_IS_LINE, jobs.c.status.in_(["bot", "human"]))
    .limit(sa.bindparam("limit", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)


def _insert(tx: Tx, batch: Batch, window_seconds: float) -> Batch:
    if batch.idempotency_key is not None:
        row = tx.conn.execute(_BY_KEY, {"user": batch.user_id, "key": batch.idempotency_key}).one_or_none()
        if row is not None and row.created_at >= tx.now - KEY_LIFETIME_US:
            return _batch_of(row)
        if row is not None:  # this row alone: another process may have inserted one with the key in the meantime
            tx.conn.execute(sa.update(batches).where(batches.c.id == row.id).values(idempotency_key=None))
    stored = msgspec.structs.replace(
        batch, created_at=tx.now, due_at=tx.now, expires_at=tx.now + round(window_seconds * SECOND_US)
    )
    if stored.status == "in_progress":
        stored = msgspec.structs.replace(stored, in_progress_at=tx.now)
    tx.conn.execute(sa.insert(batches), {name: getattr(stored, name) for name in _NAMES})
    tx.changes.append(("batch", batch.id))
    return stored


def _read_page(conn: Connection, filters: BatchFilter) -> Page[Batch]:
    rows = conn.execute(_page_statement(filters)).all()
    page = [_batch_of(row) for row in rows[: filters.limit]]
    return Page(page if filters.before_id is None else reversed(page), may_continue=len(rows) > filters.limit)


def _page_statement(filters: BatchFilter) -> sa.Select[Any]:
    """Return a query for a page of batches, and one more, which tells if another page follows."""
    query = sa.select(*_COLUMNS).where(batches.c.api == filters.api, _owner_condition(filters))
    if filters.after_id is not None:
        query = query.where(batches.c.id < filters.after_id)
    if filters.before_id is not None:
        query = query.where(batches.c.id > filters.before_id)
    order = batches.c.id.desc() if filters.before_id is None else batches.c.id.asc()
    return query.order_by(order).limit(filters.limit + 1)


def _owner_condition(filters: BatchFilter) -> sa.ColumnElement[bool]:
    """Return the condition of an owner; for all owners, the range of the API's ids: `batch_…` or `msgbatch_…`."""
    if filters.user_id is not None:
        return batches.c.user_id == filters.user_id
    return batches.c.id < "m" if filters.api == "openai" else batches.c.id > "m"


def _change(
    tx: Tx, batch_id: str, lease: str | None, status: BatchStatus, changes: Mapping[str, Any], *conditions: Any
) -> Batch:
    """Update a batch under its lease, and return it. Raises Stale before anything is written."""
    has_lease = batches.c.lease == sa.literal(lease, sa.Text)  # no row if `lease` is None: NULL equals nothing
    is_leased = (batches.c.id == batch_id, has_lease, batches.c.status == status, *conditions)
    row = tx.conn.execute(sa.update(batches).where(*is_leased).values(**changes).returning(*_COLUMNS)).one_or_none()
    if row is None:
        raise Stale(f"The batch {batch_id} is not {status} under this lease any more.")
    tx.changes.append(("batch", batch_id))
    return _batch_of(row)


def _cancel(tx: Tx, batch_id: str) -> Batch:
    is_open = (batches.c.id == batch_id) & batches.c.status.in_(_CANCELLABLE)
    changes = {"status": "cancelling", "cancelling_at": tx.now, "due_at": tx.now, "outcome": "cancelled"}
    row = tx.conn.execute(sa.update(batches).where(is_open).values(changes).returning(*_COLUMNS)).one_or_none()
    if row is None:
        present = tx.conn.execute(_BY_ID, {"batch": batch_id}).one_or_none()
        if present is None:
            raise JobNotFound(f"No batch found with id '{batch_id}'.")
        if present.status in _CANCELLED:
            return _batch_of(present)
        raise Stale(f"Cannot cancel a batch with status '{present.status}'.")
    tx.changes.append(("batch", batch_id))
    return _batch_of(row)


def _claim(tx: Tx, lease: str, limit: int, lease_seconds: float) -> list[Batch]:
    is_free = batches.c.lease.is_(None) | (batches.c.lease_until < tx.now)
    due = (
        sa.select(batches.c.id)
        .where(IS_UNENDED, batches.c.due_at <= tx.now, is_free)
        .order_by(batches.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = tx.conn.execute(due).scalars().all()
    if not ids:
        return []
    changes = {"lease": lease, "lease_until": tx.now + round(lease_seconds * SECOND_US)}
    update = sa.update(batches).where(batches.c.id.in_(ids)).values(changes).returning(*_COLUMNS)
    claimed = {row.id: _batch_of(row) for row in tx.conn.execute(update)}
    return [claimed[batch_id] for batch_id in ids]


def _cancel_lines(tx: Tx, batch: Batch, error: JobError, actor: str, limit: int) -> int:
    is_leased = (batches.c.id == batch.id) & (batches.c.lease == sa.literal(batch.lease, sa.Text))
    if tx.conn.execute(sa.select(batches.c.id).where(is_leased).with_for_update()).first() is None:
        raise Stale(f"The batch {batch.id} has another lease, or was deleted.")
    request = TransitionRequest(verb="cancel", actor=actor, changes={"error": error})
    ids = tx.conn.execute(_OPEN_JOBS, {"batch": batch.id, "limit": limit}).scalars().all()
    for job_id in ids:
        with contextlib.suppress(Stale):  # it has ended meanwhile
            apply_transition(tx, job_id, request)
    return len(ids)


def _create_delivery(tx: Tx, batch: Batch) -> None:
    """Add the delivery of the end of a batch, if it has a receiver. Its job's id is that of the batch."""
    if batch.webhook_host is None:
        return
    host = {"address": batch.webhook_host, "host": batch.webhook_host}
    state = {"state": "due", "attempt": 0, "due_at": tx.now, "created_at": tx.now}
    tx.add(deliveries, {"id": f"msg_{batch.id}", "job_id": batch.id, "kind": "webhook"} | host | state)
    tx.changes.append(("delivery", "webhook"))


def _delete(tx: Tx, condition: sa.ColumnElement[bool], *, with_input: bool) -> int:
    """Delete batches with their deliveries and files, and return their number."""
    rows = tx.conn.execute(sa.delete(batches).where(condition).returning(*_COLUMNS)).all()
    deleted = [_batch_of(row) for row in rows]
    inputs = [each for batch in deleted for each in ([batch.input_file_id] if with_input else _own_inputs(batch))]
    outputs = [each for batch in deleted for each in (batch.output_file_id, batch.error_file_id) if each is not None]
    delete_files(tx, [*inputs, *outputs])
    if deleted:
        tx.conn.execute(sa.delete(deliveries).where(deliveries.c.job_id.in_([batch.id for batch in deleted])))
    return len(deleted)


def _own_inputs(batch: Batch) -> list[str]:
    """Return the id of the input file if it belongs to the batch, as that of a message batch does."""
    return [batch.input_file_id] if batch.api == "anthropic" else []


def _batch_of(row: Row[Any]) -> Batch:
    return Batch(**dict(zip(_NAMES, row, strict=True)))
