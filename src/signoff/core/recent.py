"""What was used last, within bounds: the longest unused goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by their keys, of `max_entries` and `max_bytes` at most. One that fills all of it alone is not kept."""

    def __init__(self, *, max_entries: int, max_bytes: int, size_of: Callable[[V], int]) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._values = OrderedDict[K, V]()
        self.size_bytes = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value, which is now the one used last."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Keeps it in the place of the one before, and drops what has no room any more."""
        self.drop(key)
        size = self._size_of(value)
        if size > self._max_bytes:
            return
        self._values[key] = value
        self.size_bytes += size
        while len(self._values) > self._max_entries or self.size_bytes > self._max_bytes:
            self.drop(next(iter(self._values)))

    def drop(self, key: K) -> None:
        """Lets it go, if it is there."""
        value = self._values.pop(key, None)
        if value is not None:
            self.size_bytes -= self._size_of(value)

    def drop_where(self, is_it: Callable[[V], bool]) -> int:
        """Lets go of all of which `is_it` is true; how many."""
        gone = [key for key, value in self._values.items() if is_it(value)]
        for key in gone:
            self.drop(key)
        return len(gone)

    def values(self) -> list[V]:
        """All of them, the longest unused first."""
        return list(self._values.values())
