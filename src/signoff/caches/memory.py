"""The response cache in the memory of this process. It evicts the least recently used entries."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from signoff.cache import CacheBounds, matches_filter
from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize
from signoff.infra.lru import BoundedLRUCache

# An estimate of the memory that an entry takes in addition to its answer.
ENTRY_OVERHEAD_BYTES = 600


class StoredEntry(msgspec.Struct, frozen=True):
    """An entry with the time when it was stored."""

    entry: CacheEntry
    """The entry."""
    stored_at: float
    """Time of the monotonic clock when the entry was stored, in seconds."""


class MemoryCache:
    """A cache of this process alone; see `cache.Cache`.

    `now` is a monotonic clock in seconds. In `max_bytes`, an entry counts as its answer and ENTRY_OVERHEAD_BYTES.
    """

    is_shared = False

    def __init__(self, bounds: CacheBounds, *, now: Callable[[], float]) -> None:
        self._bounds = bounds
        self._now = now
        self._entries = _make_entries(bounds)

    async def start(self) -> None:
        """See `cache.Cache`."""

    async def lookup(self, keys: Sequence[str]) -> Mapping[str, CacheHit]:
        """See `cache.Cache`."""
        hits = dict[str, CacheHit]()
        for key in keys:
            stored = self._entries.get(key)
            if stored is None:
                continue
            age = self._now() - stored.stored_at
            if age < self._bounds.ttl_seconds:
                hits[key] = CacheHit(stored.entry, age, self._bounds.ttl_seconds - age)
            else:
                del self._entries[key]
        return hits

    def lacks(self, key: str) -> bool:
        """See `cache.Cache`."""
        return self._entries.get(key) is None

    async def store(self, entries: Sequence[CacheEntry]) -> None:
        """See `cache.Cache`."""
        for entry in entries:
            self._entries[entry.key] = StoredEntry(entry, self._now())

    async def delete(self, filters: CacheFilter) -> int:
        """See `cache.Cache`."""
        self._drop_expired()
        return self._entries.drop_where(lambda stored: matches_filter(stored.entry, filters))

    async def size(self, filters: CacheFilter) -> CacheSize:
        """See `cache.Cache`."""
        self._drop_expired()
        entries = (stored.entry for _, stored in self._entries.peek_items())
        sizes = [len(entry.answer) for entry in entries if matches_filter(entry, filters)]
        return CacheSize(len(sizes), sum(sizes))

    def on_remote_delete(self) -> None:
        """See `cache.Cache`. Which entries were deleted is not known, so drop all."""
        self._entries = _make_entries(self._bounds)

    async def close(self) -> None:
        """See `cache.Cache`."""

    def _drop_expired(self) -> None:
        expired_at = self._now() - self._bounds.ttl_seconds
        self._entries.drop_where(lambda stored: stored.stored_at <= expired_at)


def _make_entries(bounds: CacheBounds) -> BoundedLRUCache[str, StoredEntry]:
    return BoundedLRUCache(max_entries=bounds.max_entries, max_bytes=bounds.max_bytes, size_of=_size_of)


def _size_of(stored: StoredEntry) -> int:
    return len(stored.entry.answer) + ENTRY_OVERHEAD_BYTES
