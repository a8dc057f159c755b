"""All sealed secrets, in SQL: upstream keys, webhooks, addresses of brokers, and keys of receipts."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Row

from signoff.catalog import SealedKind, SealedSecret
from signoff.core.audit import encryption_key_changed
from signoff.core.delivery import DeliveryTarget
from signoff.core.reviews.queues import ReviewQueue
from signoff.core.stream import Stream
from signoff.infra.actor import current_actor
from signoff.store import Topic
from signoff.stores.audit import record
from signoff.stores.batches_schema import batches
from signoff.stores.database import Database
from signoff.stores.receipts_schema import receipt_keys
from signoff.stores.reviews_schema import review_queues
from signoff.stores.schema import deliveries, encryption_keys, jobs, keys
from signoff.stores.streams_schema import streams
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump, lock

MAX_SCANNED_JOBS = 5000
_IS_PRIVATE = receipt_keys.c.sealed != b""
# The columns that have sealed secrets, by the kind of the secret.
SEALED_COLUMNS: Mapping[SealedKind, sa.Column[Any]] = {
    "key": keys.c.sealed,
    "job": jobs.c.deliver,
    "batch": batches.c.webhook,
    "review_queue": review_queues.c.queue,
    "stream": streams.c.stream,
    "receipt_key": receipt_keys.c.sealed,
}
# The topics of the kinds whose secret is in a struct of which processes have copies.
_TOPICS: Mapping[SealedKind, Topic] = {"stream": "streams", "review_queue": "people"}
_NO_TARGETS: tuple[DeliveryTarget, ...] = ()


class SqlSecrets:
    """Sealed secrets in a SQL database; see `catalog.Secrets`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, kind: SealedKind, after: str | None, limit: int) -> list[SealedSecret]:
        """See `catalog.Secrets`."""
        if kind == "job":
            return await self._page_of_jobs(after or "", limit)
        query = _page_statement(kind, after).limit(limit)
        rows = await self._database.read(lambda conn, _: conn.execute(query).all())
        return [SealedSecret(kind=kind, id=str(place), sealed=_sealed_in(value)) for place, value in rows]

    async def _page_of_jobs(self, after: str, limit: int) -> list[SealedSecret]:
        """Scan the jobs in sections: if few of them have targets, a query for one page could read the whole table."""
        while True:
            rows, end = await self._database.read(lambda conn, _, after=after: _scan_jobs(conn, after, limit))
            if rows or end is None:
                return [secret_of(row.id, row.deliver) for row in rows]
            after = end

    async def replace(self, old: SealedSecret, sealed: bytes) -> bool:
        """See `catalog.Secrets`."""
        return await self._database.write(lambda tx: _replace(tx, old, sealed))

    async def key_fingerprints(self) -> set[str]:
        """See `catalog.Secrets`."""
        query = sa.select(encryption_keys.c.fingerprint)
        return await self._database.read(lambda conn, _: {*conn.execute(query).scalars()})

    async def add_key_fingerprint(self, fingerprint: str, *, drops_others: bool = False) -> None:
        """See `catalog.Secrets`."""
        actor = current_actor()

        def add(tx: Tx) -> None:
            old = {*tx.conn.execute(sa.select(encryption_keys.c.fingerprint)).scalars()}
            new = {fingerprint} if drops_others else {fingerprint, *old}
            if new != old:
                record(tx, actor, encryption_key_changed(old, new))
            if drops_others:
                tx.conn.execute(sa.delete(encryption_keys).where(encryption_keys.c.fingerprint != fingerprint))
            tx.add_missing(encryption_keys, {"fingerprint": fingerprint, "added_at": tx.now})

        await self._database.write(add)


def _page_statement(kind: SealedKind, after: str | None) -> sa.Select[Any, Any]:
    """Return a query for the places and columns of the secrets of a kind, after the place `after`."""
    column = SEALED_COLUMNS[kind]
    [place] = column.table.primary_key
    query = sa.select(place, column).order_by(place)
    if after is not None:
        query = query.where(place > _place_of(place, after))
    if kind == "batch":
        return query.where(column.is_not(None))
    return query.where(_IS_PRIVATE) if kind == "receipt_key" else query


def _place_of(column: sa.ColumnElement[Any], text: str) -> str | int:
    """Return the value of a primary key from its text."""
    return int(text) if isinstance(column.type, sa.Integer) else text


def _sealed_in(value: bytes | Stream | ReviewQueue) -> bytes:
    """Return the secret in the value of a column; empty if it has none."""
    return value if isinstance(value, bytes) else value.sealed or b""


def _scan_jobs(conn: Connection, after: str, limit: int) -> tuple[Sequence[Row[Any]], str | None]:
    """Return up to `limit` jobs with delivery targets, among the next `MAX_SCANNED_JOBS` jobs after the id `after`.

    The second value is the last id of that section, or None if it was the last section. The column holds JSON as bytes,
    so the database itself can tell whether there are targets.
    """
    has_targets = sa.type_coerce(jobs.c.deliver, sa.LargeBinary) != b"[]"
    following = sa.select(jobs.c.id).where(jobs.c.id > after).order_by(jobs.c.id)
    end = conn.execute(following.offset(MAX_SCANNED_JOBS - 1).limit(1)).scalar_one_or_none()
    query = following.add_columns(jobs.c.deliver).where(has_targets).limit(limit)
    return conn.execute(query if end is None else query.where(jobs.c.id <= end)).all(), end


def secret_of(job_id: str, deliver: tuple[DeliveryTarget, ...]) -> SealedSecret:
    """Return the secret in the delivery targets of a job, with empty members if they have none."""
    webhook = next((to for to in deliver if to.kind == "webhook"), None)
    if webhook is None:
        return SealedSecret(kind="job", id=job_id, sealed=b"")
    return SealedSecret(kind="job", id=job_id, sealed=webhook.sealed or b"", clear_url=webhook.clear_url)


def with_sealed(deliver: tuple[DeliveryTarget, ...], sealed: bytes) -> tuple[DeliveryTarget, ...]:
    """Return the delivery targets with `sealed` in place of the secret, and of the URL in clear, of the webhook."""
    return tuple(
        msgspec.structs.replace(to, sealed=sealed, address=to.host) if to.kind == "webhook" else to for to in deliver
    )


def _replace(tx: Tx, old: SealedSecret, sealed: bytes) -> bool:
    if old.kind == "job":
        return _replace_in_job(tx, old, sealed)
    if old.kind in _TOPICS:
        return _replace_in_struct(tx, old, sealed, _TOPICS[old.kind])
    column = SEALED_COLUMNS[old.kind]
    [place] = column.table.primary_key
    update = sa.update(column.table).where(place == _place_of(place, old.id), column == old.sealed)
    return tx.conn.execute(update.values({column: sealed})).rowcount == 1


def _replace_in_job(tx: Tx, old: SealedSecret, sealed: bytes) -> bool:
    is_job = jobs.c.id == old.id
    deliver = tx.conn.execute(sa.select(jobs.c.deliver).where(is_job)).scalar_one_or_none() or _NO_TARGETS
    if not deliver or secret_of(old.id, deliver) != old:
        return False
    if old.clear_url:
        is_webhook = (deliveries.c.job_id == old.id, deliveries.c.kind == "webhook")
        tx.conn.execute(sa.update(deliveries).where(*is_webhook).values(address=deliveries.c.host))
    tx.conn.execute(sa.update(jobs).where(is_job).values(deliver=with_sealed(deliver, sealed)))
    return True


def _replace_in_struct(tx: Tx, old: SealedSecret, sealed: bytes, topic: Topic) -> bool:
    """Replace a secret, and notify: other processes can decrypt their copies of the struct for a while only."""
    lock(tx, topic)
    column = SEALED_COLUMNS[old.kind]
    [place] = column.table.primary_key
    value: Stream | ReviewQueue | None = tx.conn.execute(sa.select(column).where(place == old.id)).scalar_one_or_none()
    if value is None or _sealed_in(value) != old.sealed:
        return False
    new = msgspec.structs.replace(value, sealed=sealed)
    tx.conn.execute(sa.update(column.table).where(place == old.id).values({column: new}))
    bump(tx, topic)
    return True
