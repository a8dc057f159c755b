"""All sealed secrets, in SQL: upstream keys, webhook secrets of jobs, addresses of brokers, and keys of receipts."""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Row

from signoff.catalog import SealedKind, SealedSecret
from signoff.core.audit import encryption_key_changed
from signoff.core.delivery import DeliveryTarget
from signoff.core.stream import Stream
from signoff.infra.actor import current_actor
from signoff.stores.audit import record
from signoff.stores.database import Database
from signoff.stores.receipts_schema import receipt_keys
from signoff.stores.schema import deliveries, encryption_keys, jobs, keys
from signoff.stores.streams_schema import streams
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump, lock

MAX_SCANNED_JOBS = 5000
_IS_PRIVATE = receipt_keys.c.sealed != b""
_NO_TARGETS: tuple[DeliveryTarget, ...] = ()


class SqlSecrets:
    """Sealed secrets in a SQL database; see `catalog.Secrets`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, kind: SealedKind, after: str | None, limit: int) -> list[SealedSecret]:
        """See `catalog.Secrets`."""
        if kind == "key":
            query = sa.select(keys.c.id, keys.c.sealed).where(keys.c.id > int(after or 0)).order_by(keys.c.id)
            rows = await self._database.read(lambda conn, _: conn.execute(query.limit(limit)).all())
            return [SealedSecret(kind="key", id=str(row.id), sealed=row.sealed) for row in rows]
        if kind == "stream":
            by_name = sa.select(streams.c.stream).where(streams.c.name > (after or "")).order_by(streams.c.name)
            declared = await self._database.read(lambda conn, _: list(conn.execute(by_name.limit(limit)).scalars()))
            return [SealedSecret(kind="stream", id=stream.name, sealed=stream.sealed) for stream in declared]
        if kind == "receipt_key":
            by_number = sa.select(*receipt_keys.c).where(receipt_keys.c.number > int(after or 0), _IS_PRIVATE)
            query = by_number.order_by(receipt_keys.c.number).limit(limit)
            rows = await self._database.read(lambda conn, _: conn.execute(query).all())
            return [SealedSecret(kind="receipt_key", id=str(row.number), sealed=row.sealed) for row in rows]
        return await self._page_of_jobs(after or "", limit)

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
    if old.kind == "key":
        is_unchanged = (keys.c.id == int(old.id), keys.c.sealed == old.sealed)
        return tx.conn.execute(sa.update(keys).where(*is_unchanged).values(sealed=sealed)).rowcount == 1
    if old.kind == "stream":
        return _replace_in_stream(tx, old, sealed)
    if old.kind == "receipt_key":
        is_unchanged = (receipt_keys.c.number == int(old.id), receipt_keys.c.sealed == old.sealed)
        return tx.conn.execute(sa.update(receipt_keys).where(*is_unchanged).values(sealed=sealed)).rowcount == 1
    is_job = jobs.c.id == old.id
    deliver = tx.conn.execute(sa.select(jobs.c.deliver).where(is_job)).scalar_one_or_none() or _NO_TARGETS
    if not deliver or secret_of(old.id, deliver) != old:
        return False
    if old.clear_url:
        is_webhook = (deliveries.c.job_id == old.id, deliveries.c.kind == "webhook")
        tx.conn.execute(sa.update(deliveries).where(*is_webhook).values(address=deliveries.c.host))
    tx.conn.execute(sa.update(jobs).where(is_job).values(deliver=with_sealed(deliver, sealed)))
    return True


def _replace_in_stream(tx: Tx, old: SealedSecret, sealed: bytes) -> bool:
    """Replace the address of a stream, and notify: other processes can decrypt their copies for a while only."""
    lock(tx, "streams")
    is_stream = streams.c.name == old.id
    stream: Stream | None = tx.conn.execute(sa.select(streams.c.stream).where(is_stream)).scalar_one_or_none()
    if stream is None or stream.sealed != old.sealed:
        return False
    tx.conn.execute(sa.update(streams).where(is_stream).values(stream=msgspec.structs.replace(stream, sealed=sealed)))
    bump(tx, "streams")
    return True
