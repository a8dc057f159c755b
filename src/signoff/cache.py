"""Interface of a response cache: signed-off answers by key, within bounds of time and size."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize


class CacheBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a cache. The server's settings define them; they do not change while the cache is in use."""

    ttl_seconds: float
    """Seconds for which an entry is served after it was stored. A hit does not extend them."""

    max_entries: int
    """The largest number of entries."""

    max_bytes: int
    """The largest sum of the sizes of all answers, in bytes. An adapter may add a fixed overhead per entry."""


class Cache(Protocol):
    """A cache of signed-off answers, bounded by `CacheBounds`.

    When a bound is exceeded, the cache evicts the oldest or the least recently used entries. It may lose any entry at
    any time: callers treat a missing entry as a miss. While its backend is unavailable, each method except `start` and
    `on_remote_delete` raises whatever the backend's client raises.
    """

    is_shared: bool
    """True if all processes of a deployment use the same entries; False if each process has its own."""

    async def start(self) -> None:
        """Prepare the cache for use. Called once, before any other method. Do not fail if the backend is away."""
        ...

    async def lookup(self, keys: Sequence[str]) -> Mapping[str, CacheHit]:
        """Return the unexpired entries among `keys`, by key; missing and expired keys are left out.

        The cache measures age and remaining time, both in seconds, by its own clock. `keys` are distinct.
        """
        ...

    def lacks(self, key: str) -> bool:
        """Return True if there is no entry under `key`, and this is known without waiting; never raise.

        False means nothing: `lookup` then tells. An entry that is being stored may count as missing.
        """
        ...

    async def store(self, entries: Sequence[CacheEntry]) -> None:
        """Store each entry under its key for `ttl_seconds`; replace an entry that has the same key.

        Skip, without an error, an entry whose answer alone exceeds `max_bytes`. If a key occurs twice in `entries`, the
        last one wins.
        """
        ...

    async def delete(self, filters: CacheFilter) -> int:
        """Delete all entries that match `filters` (see `matches_filter`), and return how many there were."""
        ...

    async def size(self, filters: CacheFilter) -> CacheSize:
        """Return the number of unexpired entries that match `filters`, and the sum of the bytes of their answers."""
        ...

    def on_remote_delete(self) -> None:
        """Drop what only this process holds, because another process has deleted entries.

        A cache that is not shared drops all of its entries, since the filter of the deletion is not known here. A
        shared cache does nothing. Never raises.
        """
        ...

    async def close(self) -> None:
        """Release connections. Called once, after all other calls have returned."""
        ...


def matches_filter(entry: CacheEntry, filters: CacheFilter) -> bool:
    """Return True if `entry` equals `filters` in each field that is not None there."""
    pairs = ((filters.key, entry.key), (filters.user_id, entry.user_id), (filters.model, entry.model))
    return all(expected in {None, actual} for expected, actual in (*pairs, (filters.target, entry.target)))
