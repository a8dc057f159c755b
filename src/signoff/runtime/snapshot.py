"""What was read from the store, as it was when it was read; a change that is heard of meanwhile counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Snapshot(Generic[V]):
    """What `read` gave, until it is out of date. `known` is None while nothing is known."""

    def __init__(self, read: Callable[[], Awaitable[V]]) -> None:
        self._read = read
        self._generation = 0
        self.known: V | None = None

    async def get(self) -> V:
        """What is known, or else what is read now. Raises what `read` does."""
        return await self.refresh() if self.known is None else self.known

    async def refresh(self) -> V:
        """What is read now. Raises what `read` does."""
        age = self._generation
        value = await self._read()
        if age == self._generation:  # else it may have changed since it was read
            self.known = value
        return value

    def invalidate(self) -> None:
        """The copy is out of date."""
        self._generation += 1
        self.known = None
