"""Cache of the prompts and pipelines that this process has used."""

import msgspec

from signoff.catalog import Library
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem
from signoff.core.pipelines.names import MAX_NAME_LENGTH
from signoff.infra.lru import BoundedLRUCache

MAX_ITEMS = 10_000
MAX_CHARACTERS = 16 * 1024 * 1024
Key = tuple[str | int, str | int]


class CachedItem(msgspec.Struct, frozen=True):
    """Result of a lookup by name or id; None if there is no such item."""

    item: LibraryItem | None


class LibraryCache:
    """Items by name and version, including negative results. The least recently used are evicted first."""

    def __init__(self, store: Library) -> None:
        self._store = store
        self._items = BoundedLRUCache[Key, CachedItem](max_entries=MAX_ITEMS, max_bytes=MAX_CHARACTERS, size_of=_size)
        self._generation = 0

    async def find(self, key: str | int, at: str | int = PRODUCTION, *, refresh: bool = False) -> LibraryItem | None:
        """Return the item with that name or id, in the version of that label or number; None if there is none.

        With `refresh`, the cache is not read.
        """
        if not (_is_possible(key) and _is_possible(at)):
            return None
        cache_key = (key, at)
        if not refresh and (copy := self._items.get(cache_key)) is not None:
            return copy.item
        generation = self._generation
        item = await self._store.get(key, at)
        if generation == self._generation:  # else it may have changed since it was read
            self._items[cache_key] = CachedItem(item)
        return item

    def invalidate(self) -> None:
        """Clear the cache."""
        self._generation += 1
        self._items.clear()


def _is_possible(key: str | int) -> bool:
    """Return False for a name that no item can have."""
    return isinstance(key, int) or (0 < len(key) <= MAX_NAME_LENGTH and key.isprintable())


def _size(copy: CachedItem) -> int:
    return 0 if copy.item is None else len(copy.item.body)
