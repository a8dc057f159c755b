"""The response cache in a table of the store's database. It evicts the oldest entries.

An entry refers to the job whose answer it is, and does not repeat the answer: it is a miss once its job is deleted.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement

from signoff.cache import CacheBounds
from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize, with_usage
from signoff.core.times import SECOND_US
from signoff.errors import write_timed_out
from signoff.stores.calls import decode_call
from signoff.stores.clock import now_us
from signoff.stores.database import WRITE_TIMEOUT_SECONDS, Database
from signoff.stores.schema import cached, calls, jobs
from signoff.stores.statements import insert_rows, upsert_statement
from signoff.stores.transaction import Tx

# The cache is trimmed after this many entries, or this fraction of a bound: it exceeds its bounds by no more than that.
TRIM_INTERVAL_ENTRIES = 256
TRIM_INTERVAL_FRACTION = 16
MAX_TRIMMED_ENTRIES = 1000
_ENTRY = ("key", "user_id", "target", "model", "job_id")


class SqlCache:
    """A response cache in a SQL database, which all of its processes share; see `cache.Cache`."""

    is_shared = True

    def __init__(self, database: Database, bounds: CacheBounds) -> None:
        self._database = database
        self._bounds = bounds
        self._new_entries = bounds.max_entries
        self._new_bytes = 0

    async def start(self) -> None:
        """See `cache.Cache`. The store opens the database."""

    async def lookup(self, keys: Sequence[str]) -> Mapping[str, CacheHit]:
        """See `cache.Cache`."""
        rows = await self._database.read(lambda conn, _: conn.execute(_BY_KEYS, {"keys": list(keys)}).all())
        hits = {row.key: _hit_of(row) for row in rows if row.expires_at > row.now}
        return {key: hit for key, hit in hits.items() if hit is not None}

    def lacks(self, key: str) -> bool:
        """See `cache.Cache`."""
        return self._database.read_at_once(_IS_KEY, (key,)) == []

    async def store(self, entries: Sequence[CacheEntry]) -> None:
        """See `cache.Cache`."""
        by_key = {entry.key: entry for entry in entries if len(entry.answer) <= self._bounds.max_bytes}
        if not by_key:
            return
        needs_trim = self._needs_trim(list(by_key.values()))

        def store(tx: Tx) -> None:
            expires_at = tx.now + round(self._bounds.ttl_seconds * SECOND_US)
            # All processes lock rows in the order of the keys, so that they cannot deadlock.
            rows = [_row(by_key[key], tx.now, expires_at) for key in sorted(by_key)]
            text, names = upsert_statement(cached, tx.conn.dialect)
            insert_rows(tx.conn, text, [tuple(map(row.__getitem__, names)) for row in rows])
            if needs_trim:
                _trim(tx, self._bounds)

        try:
            async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
                await (await self._database.defer(store))  # in the transaction that logs the call, if there is one
        except TimeoutError:
            raise write_timed_out() from None

    async def delete(self, filters: CacheFilter) -> int:
        """See `cache.Cache`."""
        delete = sa.delete(cached).where(*_conditions(filters))
        return await self._database.write(lambda tx: tx.conn.execute(delete).rowcount)

    async def size(self, filters: CacheFilter) -> CacheSize:
        """See `cache.Cache`."""

        def read(conn: sa.Connection, now: Any) -> CacheSize:
            query = _TOTAL.where(cached.c.expires_at > now(), *_conditions(filters))
            return CacheSize(*conn.execute(query).one())

        return await self._database.read(read)

    def on_remote_delete(self) -> None:
        """See `cache.Cache`. Nothing to do: the table is shared."""

    async def close(self) -> None:
        """See `cache.Cache`. The store closes the database."""

    def _needs_trim(self, entries: Sequence[CacheEntry]) -> bool:
        """Count `entries`, and return True if enough were added since the last trim, or none has been made yet."""
        self._new_entries += len(entries)
        self._new_bytes += sum(len(entry.answer) for entry in entries)
        interval = min(TRIM_INTERVAL_ENTRIES, self._bounds.max_entries // TRIM_INTERVAL_FRACTION)
        if self._new_entries < interval and self._new_bytes < self._bounds.max_bytes // TRIM_INTERVAL_FRACTION:
            return False
        self._new_entries = self._new_bytes = 0
        return True


_IS_JOB = (jobs.c.id == cached.c.job_id) & (jobs.c.status == "success")
_IS_CALL = (calls.c.id == cached.c.job_id) & (calls.c.status == "success")
_BY_KEYS = (
    sa.select(*cached.c, now_us().label("now"), jobs.c.path, jobs.c.response, jobs.c.usage, calls.c.data)
    .select_from(cached.outerjoin(jobs, _IS_JOB).outerjoin(calls, _IS_CALL))
    .where(cached.c.key.in_(sa.bindparam("keys", expanding=True)))
)
_IS_KEY = "SELECT 1 FROM cached WHERE key = ?"
_BYTES = sa.cast(sa.func.coalesce(sa.func.sum(cached.c.size_bytes), 0), sa.BigInteger)
_TOTAL = sa.select(sa.func.count(), _BYTES).select_from(cached)
_OLDEST = sa.select(cached.c.key, cached.c.size_bytes).order_by(cached.c.created_at).limit(MAX_TRIMMED_ENTRIES)
_EXPIRED = sa.select(cached.c.key).where(cached.c.created_at <= sa.bindparam("before", type_=sa.BigInteger))


def _row(entry: CacheEntry, now: int, expires_at: int) -> dict[str, Any]:
    row = {name: getattr(entry, name) for name in _ENTRY}
    return row | {"size_bytes": len(entry.answer), "created_at": now, "expires_at": expires_at}


def _hit_of(row: sa.Row[Any]) -> CacheHit | None:
    """Return the entry of a row; None if its job was deleted, or if the job's row has not been written yet."""
    job = row if row.data is None else decode_call(row.data)
    if job.response is None:
        return None
    entry = CacheEntry(
        **{name: getattr(row, name) for name in _ENTRY},
        path=job.path,
        usage=job.usage,
        answer=with_usage(job.path, job.response, job.usage),
    )
    return CacheHit(entry, max(0, row.now - row.created_at) / SECOND_US, (row.expires_at - row.now) / SECOND_US)


def _trim(tx: Tx, bounds: CacheBounds) -> None:
    """Delete expired entries, and the oldest ones while the bounds are exceeded."""
    before = tx.now - round(bounds.ttl_seconds * SECOND_US)
    _delete(tx, tx.conn.execute(_EXPIRED.limit(MAX_TRIMMED_ENTRIES), {"before": before}).scalars().all())
    entries, size = tx.conn.execute(_TOTAL).one()
    evicted = list[str]()
    for row in tx.conn.execute(_OLDEST):
        if entries <= bounds.max_entries and size <= bounds.max_bytes:
            break
        entries, size = entries - 1, size - row.size_bytes
        evicted.append(row.key)
    _delete(tx, evicted)


def _delete(tx: Tx, keys: Sequence[str]) -> None:
    if keys:
        tx.conn.execute(sa.delete(cached).where(cached.c.key.in_(keys)))


def _conditions(filters: CacheFilter) -> list[ColumnElement[bool]]:
    values = {"key": filters.key, "user_id": filters.user_id, "model": filters.model, "target": filters.target}
    return [cached.c[name] == value for name, value in values.items() if value is not None]
