"""Cache of the prompts and pipelines that this process has used."""

from __future__ import annotations

import msgspec

from signoff.core.pipelines.composed import PRODUCTION, LibraryItem
from signoff.core.pipelines.names import MAX_NAME_LENGTH
from signoff.infra.lru import BoundedLRUCache
from signoff.store import Library as Promise

MAX_KEPT = 10_000
MAX_CHARACTERS = 16 * 1024 * 1024
Key = tuple[str | int, str | int]


class CachedItem(msgspec.Struct, frozen=True):
    """Result of a lookup by name or id; None if there is no such item."""

    found: LibraryItem | None


class LibraryCache:
    """Items by name and version, including negative results. The least recently used are evicted first."""

    def __init__(self, store: Promise) -> None:
        self._store = store
        self._kept = BoundedLRUCache[Key, CachedItem](max_entries=MAX_KEPT, max_bytes=MAX_CHARACTERS, size_of=_size)
        self._generation = 0

    async def find(self, key: str | int, at: str | int = PRODUCTION, *, refresh: bool = False) -> LibraryItem | None:
        """Return the item with that name or id, in the version of that label or number; None if there is none.

        With `refresh`, the cache is not read.
        """
        if not (_can_be(key) and _can_be(at)):
            return None
        place = (key, at)
        if not refresh and (copy := self._kept.get(place)) is not None:
            return copy.found
        age = self._generation
        found = await self._store.get(key, at)
        if age == self._generation:  # else it may have changed since it was read
            self._kept[place] = CachedItem(found)
        return found

    def invalidate(self) -> None:
        """Clear the cache."""
        self._generation += 1
        self._kept.clear()


def _can_be(key: str | int) -> bool:
    """Return False for a name that no item can have."""
    return isinstance(key, int) or (0 < len(key) <= MAX_NAME_LENGTH and key.isprintable())


def _size(copy: CachedItem) -> int:
    return 0 if copy.found is None else len(copy.found.body)
