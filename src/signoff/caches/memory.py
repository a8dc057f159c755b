"""The cache in this process's own memory: the longest unused goes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from signoff.cache import Bounds, fits
from signoff.core.cache import Entry, Found, Size, Which
from signoff.core.recent import Recent

# What an entry takes beside its answer, about.
ENTRY_BYTES = 600


class Kept(msgspec.Struct, frozen=True):
    """An entry, and when it came, in seconds."""

    entry: Entry
    at: float


class MemoryCache:
    """See `cache.Cache`. Each process has its own, which ends with it. `now` gives seconds that only go forward."""

    is_shared = False

    def __init__(self, bounds: Bounds, *, now: Callable[[], float]) -> None:
        self._bounds = bounds
        self._now = now
        self._kept = _empty(bounds)

    async def start(self) -> None:
        """See `cache.Cache`."""

    async def find(self, keys: Sequence[str]) -> Mapping[str, Found]:
        """See `cache.Cache`."""
        found = dict[str, Found]()
        for key in keys:
            kept = self._kept.get(key)
            if kept is None:
                continue
            age = self._now() - kept.at
            if age < self._bounds.ttl_seconds:
                found[key] = Found(kept.entry, age, self._bounds.ttl_seconds - age)
            else:
                self._kept.drop(key)
        return found

    async def keep(self, entries: Sequence[Entry]) -> None:
        """See `cache.Cache`."""
        for entry in entries:
            self._kept.put(entry.key, Kept(entry, self._now()))

    async def delete(self, which: Which) -> int:
        """See `cache.Cache`."""
        self._drop_old()
        return self._kept.drop_where(lambda kept: fits(kept.entry, which))

    async def size(self, which: Which) -> Size:
        """See `cache.Cache`."""
        self._drop_old()
        sizes = [len(kept.entry.answer) for kept in self._kept.values() if fits(kept.entry, which)]
        return Size(len(sizes), sum(sizes))

    def deleted_elsewhere(self) -> None:
        """See `cache.Cache`. Nobody says what it was."""
        self._kept = _empty(self._bounds)

    async def close(self) -> None:
        """See `cache.Cache`."""

    def _drop_old(self) -> None:
        oldest = self._now() - self._bounds.ttl_seconds
        self._kept.drop_where(lambda kept: kept.at <= oldest)


def _empty(bounds: Bounds) -> Recent[str, Kept]:
    return Recent(max_entries=bounds.max_entries, max_bytes=bounds.max_bytes, size_of=_size_of)


def _size_of(kept: Kept) -> int:
    return len(kept.entry.answer) + ENTRY_BYTES
