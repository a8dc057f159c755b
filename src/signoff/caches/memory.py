"""The cache in this process's own memory: the longest unused goes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from signoff.cache import CacheBounds, matches_filter
from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize
from signoff.infra.lru import BoundedLRUCache

# What an entry takes beside its answer, about.
ENTRY_BYTES = 600


class StoredEntry(msgspec.Struct, frozen=True):
    """An entry, and when it came, in seconds."""

    entry: CacheEntry
    at: float


class MemoryCache:
    """See `cache.Cache`. Each process has its own, which ends with it. `now` gives seconds that only go forward."""

    is_shared = False

    def __init__(self, bounds: CacheBounds, *, now: Callable[[], float]) -> None:
        self._bounds = bounds
        self._now = now
        self._entries = _empty(bounds)

    async def start(self) -> None:
        """See `cache.Cache`."""

    async def lookup(self, keys: Sequence[str]) -> Mapping[str, CacheHit]:
        """See `cache.Cache`."""
        found = dict[str, CacheHit]()
        for key in keys:
            kept = self._entries.get(key)
            if kept is None:
                continue
            age = self._now() - kept.at
            if age < self._bounds.ttl_seconds:
                found[key] = CacheHit(kept.entry, age, self._bounds.ttl_seconds - age)
            else:
                del self._entries[key]
        return found

    async def store(self, entries: Sequence[CacheEntry]) -> None:
        """See `cache.Cache`."""
        for entry in entries:
            self._entries[entry.key] = StoredEntry(entry, self._now())

    async def delete(self, which: CacheFilter) -> int:
        """See `cache.Cache`."""
        self._drop_old()
        return self._entries.drop_where(lambda kept: matches_filter(kept.entry, which))

    async def size(self, which: CacheFilter) -> CacheSize:
        """See `cache.Cache`."""
        self._drop_old()
        sizes = [len(kept.entry.answer) for _, kept in self._entries.peek_items() if matches_filter(kept.entry, which)]
        return CacheSize(len(sizes), sum(sizes))

    def on_remote_delete(self) -> None:
        """See `cache.Cache`. Nobody says what it was."""
        self._entries = _empty(self._bounds)

    async def close(self) -> None:
        """See `cache.Cache`."""

    def _drop_old(self) -> None:
        oldest = self._now() - self._bounds.ttl_seconds
        self._entries.drop_where(lambda kept: kept.at <= oldest)


def _empty(bounds: CacheBounds) -> BoundedLRUCache[str, StoredEntry]:
    return BoundedLRUCache(max_entries=bounds.max_entries, max_bytes=bounds.max_bytes, size_of=_size_of)


def _size_of(kept: StoredEntry) -> int:
    return len(kept.entry.answer) + ENTRY_BYTES
