"""The LRU cache of `cachetools` with two bounds: entries and bytes."""

from collections.abc import Callable, Hashable
from typing import TypeVar

from cachetools import LRUCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedLRUCache(LRUCache[K, V]):
    """An LRU cache of at most `max_entries` entries and `max_bytes` bytes; `size_of` returns the bytes of a value."""

    def __init__(self, *, max_entries: int, max_bytes: int, size_of: Callable[[V], int]) -> None:
        super().__init__(max_bytes, size_of)
        self._max_entries = max_entries

    def __setitem__(self, key: K, value: V) -> None:
        """Store `value` as the most recently used one; drop a value that is larger than `max_bytes`."""
        self.pop(key, None)
        if self.getsizeof(value) > self.maxsize:
            return
        super().__setitem__(key, value)
        while len(self) > self._max_entries:
            self.popitem()

    def peek_items(self) -> list[tuple[K, V]]:
        """Return all entries without marking them as used."""
        return [(key, super(LRUCache, self).__getitem__(key)) for key in self]

    def drop_where(self, matches: Callable[[V], bool]) -> int:
        """Drop every value for which `matches` returns True, and return their number."""
        keys = [key for key, value in self.peek_items() if matches(value)]
        for key in keys:
            del self[key]
        return len(keys)
