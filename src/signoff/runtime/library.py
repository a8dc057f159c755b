"""The prompts and pipelines that this process was asked for lately, as the store has them."""

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
    """What there is of that name or id; None where there is nothing."""

    found: LibraryItem | None


class LibraryCache:
    """Copies by name and version, those that do not exist too; the longest unused go first."""

    def __init__(self, store: Promise) -> None:
        self._store = store
        self._kept = BoundedLRUCache[Key, CachedItem](max_entries=MAX_KEPT, max_bytes=MAX_CHARACTERS, size_of=_size)
        self._generation = 0

    async def find(self, key: str | int, at: str | int = PRODUCTION, *, refresh: bool = False) -> LibraryItem | None:
        """The one of that name or id, in the version of that label or number; `anew`, as it is in the store now."""
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
        """The copies are out of date."""
        self._generation += 1
        self._kept.clear()


def _can_be(key: str | int) -> bool:
    """Whether it is worth a look at the store."""
    return isinstance(key, int) or (0 < len(key) <= MAX_NAME_LENGTH and key.isprintable())


def _size(copy: CachedItem) -> int:
    return 0 if copy.found is None else len(copy.found.body)
