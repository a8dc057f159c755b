"""The promise of a cache: signed-off answers by their keys, for a while, within bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize


class CacheBounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept, and for how long."""

    ttl_seconds: float
    max_entries: int
    max_bytes: int


class Cache(Protocol):
    """Keeps entries for as long as its bounds say; what has no room goes, the oldest or the longest unused first.

    It may lose entries at any time. Its methods raise whatever is wrong when it is away. `is_shared` says whether all
    processes have it together.
    """

    is_shared: bool

    async def start(self) -> None: ...
    async def lookup(self, keys: Sequence[str]) -> Mapping[str, CacheHit]:
        """Those that are there, by the keeper's own clock."""
        ...

    async def store(self, entries: Sequence[CacheEntry]) -> None:
        """Keeps each one, in the place of what had its key. An entry that fills all of it alone is left out."""
        ...

    async def delete(self, which: CacheFilter) -> int:
        """Forgets those; how many."""
        ...

    async def size(self, which: CacheFilter) -> CacheSize:
        """How many those are, and the bytes of their answers."""
        ...

    def on_remote_delete(self) -> None:
        """Another process has deleted something: what this process alone knows goes, too."""
        ...

    async def close(self) -> None: ...


def matches_filter(entry: CacheEntry, which: CacheFilter) -> bool:
    """Whether `entry` is one of those."""
    wanted = ((which.key, entry.key), (which.user_id, entry.user_id), (which.model, entry.model))
    return all(told is None or told == own for told, own in (*wanted, (which.target, entry.target)))
