"""The prompts and pipelines that this process was asked for lately, as the store has them."""

from __future__ import annotations

from collections import OrderedDict

from signoff.core.names import LONGEST_NAME
from signoff.core.target import PRODUCTION, Composed
from signoff.store import Compositions as Promise

MAX_KEPT = 10_000
MAX_CHARACTERS = 16 * 1024 * 1024
Key = tuple[str | int, str | int]


class Compositions:
    """Copies by name and version, those that do not exist too; the longest unused go first."""

    def __init__(self, store: Promise) -> None:
        self._store = store
        self._kept = OrderedDict[Key, Composed | None]()
        self._characters = 0
        self._age = 0

    async def find(self, key: str | int, at: str | int = PRODUCTION, *, anew: bool = False) -> Composed | None:
        """The one of that name or id, in the version of that label or number; `anew`, as it is in the store now."""
        if not (_can_be(key) and _can_be(at)):
            return None
        place = (key, at)
        if place in self._kept and not anew:
            self._kept.move_to_end(place)
            return self._kept[place]
        age = self._age
        found = await self._store.composed(key, at)
        if age == self._age:  # else it may have changed since it was read
            self._keep(place, found)
        return found

    def forget(self) -> None:
        """The copies are out of date."""
        self._age += 1
        self._kept.clear()
        self._characters = 0

    def _keep(self, place: Key, found: Composed | None) -> None:
        self._characters += _size(found) - _size(self._kept.pop(place, None))
        self._kept[place] = found
        while len(self._kept) > MAX_KEPT or self._characters > MAX_CHARACTERS:
            _, dropped = self._kept.popitem(last=False)
            self._characters -= _size(dropped)


def _can_be(key: str | int) -> bool:
    """Whether it is worth a look at the store."""
    return isinstance(key, int) or (0 < len(key) <= LONGEST_NAME and key.isprintable())


def _size(composed: Composed | None) -> int:
    return 0 if composed is None else len(composed.body)
