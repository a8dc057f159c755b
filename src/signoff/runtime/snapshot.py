"""Snapshot of data in the store, valid until a notification invalidates it."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Snapshot(Generic[V]):
    """Result of `read`, until it is invalidated. `known` is None while there is none."""

    def __init__(self, read: Callable[[], Awaitable[V]]) -> None:
        self._read = read
        self._generation = 0
        self.known: V | None = None

    async def get(self) -> V:
        """Return the snapshot, reading it if there is none. Raises the errors of `read`."""
        return await self.refresh() if self.known is None else self.known

    async def refresh(self) -> V:
        """Read a new snapshot and return it. Raises the errors of `read`."""
        generation = self._generation
        value = await self._read()
        if generation == self._generation:  # otherwise the value may be out of date
            self.known = value
        return value

    def invalidate(self) -> None:
        """Discard the snapshot, and the result of a read in progress."""
        self._generation += 1
        self.known = None
