"""The cache in a table of the store's database: the oldest goes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import ColumnElement

from signoff.cache import CacheBounds
from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize
from signoff.stores.clock import now_us
from signoff.stores.database import Database
from signoff.stores.schema import cached
from signoff.stores.transitions import SECOND
from signoff.stores.writer import Tx

# Between two looks at how much there is: the bounds are exceeded by no more than this.
LOOK_EVERY_ENTRIES = 256
LOOK_EVERY_PART = 16
TRIMMED_AT_ONCE = 1000
_ENTRY = tuple(name for name in CacheEntry.__struct_fields__)


class SqlCache:
    """See `cache.Cache`. All processes on this database have it together."""

    is_shared = True

    def __init__(self, database: Database, bounds: CacheBounds) -> None:
        self._database = database
        self._bounds = bounds
        self._entries_since = bounds.max_entries
        self._bytes_since = 0

    async def start(self) -> None:
        """See `cache.Cache`. The store opens the database."""

    async def lookup(self, keys: Sequence[str]) -> Mapping[str, CacheHit]:
        """See `cache.Cache`."""
        rows = await self._database.read(lambda conn, _: conn.execute(_FIND, {"keys": list(keys)}).all())
        return {row.key: _found(row) for row in rows if row.expires_at > row.now}

    async def store(self, entries: Sequence[CacheEntry]) -> None:
        """See `cache.Cache`."""
        wanted = {entry.key: entry for entry in entries if len(entry.answer) <= self._bounds.max_bytes}
        if not wanted:
            return
        is_time = self._is_time_to_look(list(wanted.values()))

        def keep(tx: Tx) -> None:
            expires_at = tx.now + round(self._bounds.ttl_seconds * SECOND)
            # In one order in every process, or two of them would wait for each other's rows.
            rows = [_row(wanted[key], tx.now, expires_at) for key in sorted(wanted)]
            tx.conn.execute(_keep(tx.conn.dialect.name), rows)
            if is_time:
                _trim(tx, self._bounds)

        await self._database.write(keep)

    async def delete(self, which: CacheFilter) -> int:
        """See `cache.Cache`."""
        return await self._database.write(lambda tx: tx.conn.execute(sa.delete(cached).where(*_those(which))).rowcount)

    async def size(self, which: CacheFilter) -> CacheSize:
        """See `cache.Cache`."""

        def read(conn: sa.Connection, now: Any) -> CacheSize:
            query = _TOTAL.where(cached.c.expires_at > now(), *_those(which))
            return CacheSize(*conn.execute(query).one())

        return await self._database.read(read)

    def on_remote_delete(self) -> None:
        """See `cache.Cache`. It was deleted here, too."""

    async def close(self) -> None:
        """See `cache.Cache`. The store closes the database."""

    def _is_time_to_look(self, entries: Sequence[CacheEntry]) -> bool:
        """Whether enough has come since the last look, or nobody has looked yet."""
        self._entries_since += len(entries)
        self._bytes_since += sum(len(entry.answer) for entry in entries)
        enough = min(LOOK_EVERY_ENTRIES, self._bounds.max_entries // LOOK_EVERY_PART)
        if self._entries_since < enough and self._bytes_since < self._bounds.max_bytes // LOOK_EVERY_PART:
            return False
        self._entries_since = self._bytes_since = 0
        return True


_FIND = sa.select(*cached.c, now_us().label("now")).where(cached.c.key.in_(sa.bindparam("keys", expanding=True)))
_BYTES = sa.cast(sa.func.coalesce(sa.func.sum(cached.c.size_bytes), 0), sa.BigInteger)
_TOTAL = sa.select(sa.func.count(), _BYTES).select_from(cached)
_OLDEST = sa.select(cached.c.key, cached.c.size_bytes).order_by(cached.c.created_at).limit(TRIMMED_AT_ONCE)
_EXPIRED = sa.select(cached.c.key).where(cached.c.created_at <= sa.bindparam("before", type_=sa.BigInteger))


@cache
def _keep(dialect: str) -> Any:
    """Puts rows, in the place of those with the same keys."""
    insert = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[dialect](cached)
    fresh = {column.name: insert.excluded[column.name] for column in cached.c if column.name != "key"}
    return insert.on_conflict_do_update(index_elements=[cached.c.key], set_=fresh)


def _row(entry: CacheEntry, now: int, expires_at: int) -> dict[str, Any]:
    row = {name: getattr(entry, name) for name in _ENTRY}
    return row | {"size_bytes": len(entry.answer), "created_at": now, "expires_at": expires_at}


def _found(row: sa.Row[Any]) -> CacheHit:
    entry = CacheEntry(**{name: getattr(row, name) for name in _ENTRY})
    return CacheHit(entry, max(0, row.now - row.created_at) / SECOND, (row.expires_at - row.now) / SECOND)


def _trim(tx: Tx, bounds: CacheBounds) -> None:
    """Deletes what has expired, and the oldest of what is too much."""
    before = tx.now - round(bounds.ttl_seconds * SECOND)
    _delete(tx, tx.conn.execute(_EXPIRED.limit(TRIMMED_AT_ONCE), {"before": before}).scalars().all())
    entries, size = tx.conn.execute(_TOTAL).one()
    gone = list[str]()
    for row in tx.conn.execute(_OLDEST):
        if entries <= bounds.max_entries and size <= bounds.max_bytes:
            break
        entries, size = entries - 1, size - row.size_bytes
        gone.append(row.key)
    _delete(tx, gone)


def _delete(tx: Tx, keys: Sequence[str]) -> None:
    if keys:
        tx.conn.execute(sa.delete(cached).where(cached.c.key.in_(keys)))


def _those(which: CacheFilter) -> list[ColumnElement[bool]]:
    told = {"key": which.key, "user_id": which.user_id, "model": which.model, "target": which.target}
    return [cached.c[name] == value for name, value in told.items() if value is not None]
