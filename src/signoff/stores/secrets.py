"""Everything that is sealed, as SQL: keys of upstreams, webhooks' own secrets in jobs, addresses of brokers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Row

from signoff.catalog import SealedKind, SealedSecret
from signoff.core.delivery import DeliveryTarget
from signoff.core.stream import Stream
from signoff.stores.database import Database
from signoff.stores.schema import jobs, keys, streams
from signoff.stores.versions import bump, lock
from signoff.stores.writer import Tx

STRETCH = 5000
_NOBODY_IS_TOLD: tuple[DeliveryTarget, ...] = ()


class SqlSecrets:
    """The sealed secrets of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, kind: SealedKind, after: str | None, limit: int) -> list[SealedSecret]:
        """See `catalog.Secrets`."""
        if kind == "key":
            query = sa.select(keys.c.id, keys.c.sealed).where(keys.c.id > int(after or 0)).order_by(keys.c.id)
            rows = await self._database.read(lambda conn, _: conn.execute(query.limit(limit)).all())
            return [SealedSecret(kind="key", place=str(row.id), sealed=row.sealed) for row in rows]
        if kind == "stream":
            declared = sa.select(streams.c.stream).where(streams.c.name > (after or "")).order_by(streams.c.name)
            found = await self._database.read(lambda conn, _: list(conn.execute(declared.limit(limit)).scalars()))
            return [SealedSecret(kind="stream", place=stream.name, sealed=stream.sealed) for stream in found]
        return await self._of_jobs(after or "", limit)

    async def _of_jobs(self, after: str, limit: int) -> list[SealedSecret]:
        """Looks through the jobs in stretches: where few are told of, a page could be anywhere in the whole log."""
        while True:
            rows, end = await self._database.read(lambda conn, _, after=after: _told(conn, after, limit))
            if rows or end is None:
                return [SealedSecret(kind="job", place=row.id, sealed=sealed_in(row.deliver)) for row in rows]
            after = end

    async def replace(self, old: SealedSecret, sealed: bytes) -> bool:
        """See `catalog.Secrets`."""
        return await self._database.write(lambda tx: _replaced(tx, old, sealed))


def _told(conn: Connection, after: str, limit: int) -> tuple[Sequence[Row[Any]], str | None]:
    """Up to `limit` jobs behind `after`, in its stretch, whose end is told; and where that ends, unless it is the last.

    What is packed is JSON: a database can tell whether there is something in it.
    """
    is_told = sa.type_coerce(jobs.c.deliver, sa.LargeBinary) != b"[]"
    behind = sa.select(jobs.c.id).where(jobs.c.id > after).order_by(jobs.c.id)
    end = conn.execute(behind.offset(STRETCH - 1).limit(1)).scalar_one_or_none()
    told = behind.add_columns(jobs.c.deliver).where(is_told).limit(limit)
    return conn.execute(told if end is None else told.where(jobs.c.id <= end)).all(), end


def sealed_in(deliver: tuple[DeliveryTarget, ...]) -> bytes:
    """The secret that a job carries; empty where it carries none."""
    return next((to.sealed for to in deliver if to.sealed is not None), b"")


def sealed_anew(deliver: tuple[DeliveryTarget, ...], sealed: bytes) -> tuple[DeliveryTarget, ...]:
    """`deliver` with that secret in the place of the one that it carries."""
    return tuple(to if to.sealed is None else msgspec.structs.replace(to, sealed=sealed) for to in deliver)


def _replaced(tx: Tx, old: SealedSecret, sealed: bytes) -> bool:
    if old.kind == "key":
        there = (keys.c.id == int(old.place), keys.c.sealed == old.sealed)
        return tx.conn.execute(sa.update(keys).where(*there).values(sealed=sealed)).rowcount == 1
    if old.kind == "stream":
        return _replaced_at_stream(tx, old, sealed)
    here = jobs.c.id == old.place
    deliver = tx.conn.execute(sa.select(jobs.c.deliver).where(here)).scalar_one_or_none() or _NOBODY_IS_TOLD
    if sealed_in(deliver) != old.sealed:
        return False
    tx.conn.execute(sa.update(jobs).where(here).values(deliver=sealed_anew(deliver, sealed)))
    return True


def _replaced_at_stream(tx: Tx, old: SealedSecret, sealed: bytes) -> bool:
    """Whoever listens must learn of it: what they have a copy of can be opened for a while only."""
    lock(tx, "streams")
    here = streams.c.name == old.place
    stream: Stream | None = tx.conn.execute(sa.select(streams.c.stream).where(here)).scalar_one_or_none()
    if stream is None or stream.sealed != old.sealed:
        return False
    tx.conn.execute(sa.update(streams).where(here).values(stream=msgspec.structs.replace(stream, sealed=sealed)))
    bump(tx, "streams")
    return True
