"""Cache of answers with local copies, and lookups and writes in batches. If unavailable, it counts as empty."""

import asyncio
from collections.abc import Mapping

import msgspec
import structlog

from signoff.cache import Cache, matches_filter
from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize
from signoff.errors import BadRequest, Overloaded
from signoff.infra.lru import BoundedLRUCache
from signoff.runtime.background import Background

MAX_LOCAL_ENTRIES = 10_000
MAX_LOCAL_BYTES = 32 * 1024 * 1024
# Memory of a local copy besides its answer, estimated.
ENTRY_OVERHEAD_BYTES = 800
MAX_PENDING_BYTES = 64 * 1024 * 1024
MAX_PENDING_ENTRIES = 10_000
READ_BATCH_SIZE = 500
WRITE_BATCH_SIZE = 200
# A lookup never takes longer. After a timeout the cache counts as unavailable, and is retried once a second.
LOOKUP_TIMEOUT_SECONDS = 0.25
RETRY_SECONDS = 1.0
STORE_WAIT_SECONDS = 1.0
log = structlog.get_logger()


class LocalCopy(msgspec.Struct, frozen=True):
    """Local copy of an entry. Times are seconds on the loop's clock."""

    entry: CacheEntry
    born_at: float
    """Time at which the answer was signed off."""
    ends_at: float
    """Time at which the entry expires."""


class ResponseCache:
    """Answers that can be reused, for `ttl_seconds` each. Without a `cache` there are none."""

    def __init__(self, cache: Cache | None, background: Background, *, ttl_seconds: float = 0) -> None:
        self._cache = cache
        self._background = background
        self._ttl_seconds = ttl_seconds
        self._local = BoundedLRUCache[str, LocalCopy](
            max_entries=MAX_LOCAL_ENTRIES, max_bytes=MAX_LOCAL_BYTES, size_of=_size_of
        )
        self._lookups: dict[str, list[asyncio.Future[LocalCopy | None]]] = {}
        self._pending: dict[str, CacheEntry] = {}
        self._pending_bytes = 0
        self._read_task: asyncio.Task[None] | None = None
        self._write_task: asyncio.Task[None] | None = None
        self._generation = 0
        self._retry_at: float | None = None

    @property
    def is_on(self) -> bool:
        """True if answers are cached at all."""
        return self._cache is not None

    @property
    def is_shared(self) -> bool:
        """True if all processes share the cache."""
        return self._cache is None or self._cache.is_shared

    async def start(self) -> None:
        """Open the cache."""
        if self._cache is not None:
            await self._cache.start()

    async def lookup(self, key: str, max_age_seconds: float | None = None) -> CacheEntry | None:
        """Return the entry under `key`, unless it is `max_age_seconds` old or older."""
        now = _now()
        copy = self._local.get(key)
        if copy is None or copy.ends_at <= now:
            copy = await self._load(key)
        if copy is None or (max_age_seconds is not None and _now() - copy.born_at >= max_age_seconds):
            return None
        return copy.entry

    def store(self, entry: CacheEntry) -> None:
        """Store an answer, locally at once, in the cache soon. It is not stored there if too much is pending."""
        if self._cache is None:
            return
        now = _now()
        self._local[entry.key] = LocalCopy(entry, now, now + self._ttl_seconds)
        if len(self._pending) >= MAX_PENDING_ENTRIES or self._pending_bytes + len(entry.answer) > MAX_PENDING_BYTES:
            return
        self._drop_pending(entry.key)
        self._pending[entry.key] = entry
        self._pending_bytes += len(entry.answer)
        if self._write_task is None or self._write_task.done():
            self._write_task = self._background.spawn(self._write(self._cache))

    async def until_stored(self) -> None:
        """Wait until pending answers are in the cache, at most STORE_WAIT_SECONDS."""
        if self._write_task is not None and not self._write_task.done():
            await asyncio.wait([self._write_task], timeout=STORE_WAIT_SECONDS)

    async def delete(self, which: CacheFilter) -> int:
        """Delete the matching entries and return their number.

        Raises BadRequest for a filter with a NUL character (PostgreSQL), and Overloaded if the cache is unavailable.
        """
        if self._cache is None:
            return 0
        self._drop_local(which)
        for entry in [entry for entry in self._pending.values() if matches_filter(entry, which)]:
            self._drop_pending(entry.key)
        await self.until_stored()  # writes in progress would arrive after the deletion
        try:
            return await self._cache.delete(which)
        except BadRequest:
            raise
        except Exception as error:
            self._set_failure(error)
            raise Overloaded("The cache is unavailable; nothing was deleted. Try again later.") from error
        finally:
            self._drop_local(which)  # a lookup may have read entries before they were deleted

    async def size(self, which: CacheFilter) -> CacheSize:
        """Return the number and size of the matching entries. Raises what `delete` raises."""
        if self._cache is None:
            return CacheSize()
        await self.until_stored()
        try:
            return await self._cache.size(which)
        except BadRequest:
            raise
        except Exception as error:
            self._set_failure(error)
            raise Overloaded("The cache is unavailable. Try again later.") from error

    def invalidate(self) -> None:
        """Drop all local copies, because another process has deleted entries."""
        self._generation += 1
        self._local.clear()
        if self._cache is not None:
            self._cache.on_remote_delete()

    async def close(self) -> None:
        """Close the cache."""
        if self._cache is not None:
            await self._cache.close()

    async def _load(self, key: str) -> LocalCopy | None:
        """Look `key` up in the cache, in a batch with other lookups; return None while the cache is unavailable."""
        if self._cache is None or self._cache.lacks(key):
            return None
        is_unavailable = self._retry_at is not None
        if is_unavailable and (_now() < (self._retry_at or 0) or self._is_reading):
            return None
        future: asyncio.Future[LocalCopy | None] = asyncio.get_running_loop().create_future()
        self._lookups.setdefault(key, []).append(future)
        if not self._is_reading:
            self._read_task = self._background.spawn(self._read(self._cache))
        return None if is_unavailable else await future  # a retry is not waited for

    @property
    def _is_reading(self) -> bool:
        return self._read_task is not None and not self._read_task.done()

    async def _read(self, cache: Cache) -> None:
        """Serve all lookups in batches: each batch has the lookups that arrived during the one before."""
        try:
            while self._lookups:
                keys = list(self._lookups)[:READ_BATCH_SIZE]
                await self._read_batch(cache, {key: self._lookups.pop(key) for key in keys})
        finally:  # after a cancellation, answer the rest
            for futures in self._lookups.values():
                _resolve(futures, None)

    async def _read_batch(self, cache: Cache, lookups: Mapping[str, list[asyncio.Future[LocalCopy | None]]]) -> None:
        copies = dict[str, LocalCopy]()
        timer = asyncio.get_running_loop().call_later(LOOKUP_TIMEOUT_SECONDS, self._time_out, lookups)
        try:
            copies = self._copy_locally(await self._lookup_remote(cache, lookups))
        except Exception as error:  # noqa: BLE001 -- every error counts as a miss
            self._set_failure(error)
        else:
            self._set_failure(None)
        finally:
            timer.cancel()
            for key, futures in lookups.items():
                _resolve(futures, copies.get(key))

    async def _lookup_remote(
        self, cache: Cache, lookups: Mapping[str, list[asyncio.Future[LocalCopy | None]]]
    ) -> Mapping[str, CacheHit]:
        """Look the keys up; do so again if entries were deleted meanwhile, as long as a lookup waits for the result."""
        while any(not future.done() for futures in lookups.values() for future in futures):
            generation = self._generation
            hits = await cache.lookup(list(lookups))
            if generation == self._generation:
                return hits
        return {}

    def _copy_locally(self, hits: Mapping[str, CacheHit]) -> dict[str, LocalCopy]:
        now = _now()
        copies = {key: LocalCopy(hit.entry, now - hit.age_seconds, now + hit.left_seconds) for key, hit in hits.items()}
        for key, copy in copies.items():
            self._local[key] = copy
        return copies

    def _time_out(self, lookups: Mapping[str, list[asyncio.Future[LocalCopy | None]]]) -> None:
        """Answer all waiting lookups with a miss, and stop waiting for the cache until it responds."""
        self._set_failure(TimeoutError(f"no answer within {LOOKUP_TIMEOUT_SECONDS} s"))
        for futures in (*lookups.values(), *self._lookups.values()):
            _resolve(futures, None)

    async def _write(self, cache: Cache) -> None:
        while self._pending:
            entries = list(self._pending.values())[:WRITE_BATCH_SIZE]
            for entry in entries:
                self._drop_pending(entry.key)
            try:
                await cache.store(entries)
            except Exception as error:  # noqa: BLE001 -- a lost entry is only a later miss
                self._set_failure(error)

    def _drop_local(self, which: CacheFilter) -> None:
        self._generation += 1
        self._local.drop_where(lambda copy: matches_filter(copy.entry, which))

    def _drop_pending(self, key: str) -> None:
        entry = self._pending.pop(key, None)
        if entry is not None:
            self._pending_bytes -= len(entry.answer)

    def _set_failure(self, error: Exception | None) -> None:
        """Record an error, or None for a success; log only the changes."""
        if error is not None and self._retry_at is None:
            log.warning("response_cache_unavailable", error=repr(error))
        if error is None and self._retry_at is not None:
            log.info("response_cache_available")
        self._retry_at = None if error is None else _now() + RETRY_SECONDS


def _resolve(futures: list[asyncio.Future[LocalCopy | None]], copy: LocalCopy | None) -> None:
    for future in futures:
        if not future.done():
            future.set_result(copy)


def _size_of(copy: LocalCopy) -> int:
    return len(copy.entry.answer) + ENTRY_OVERHEAD_BYTES


def _now() -> float:
    return asyncio.get_running_loop().time()
