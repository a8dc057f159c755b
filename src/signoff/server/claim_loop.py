"""Loop of a background service that claims leased items from the store and works on several at a time."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import structlog

from signoff.runtime.background import drain
from signoff.work.services import Services

T = TypeVar("T")
Group = TypeVar("Group")
RETRY_SECONDS = 1.0
log = structlog.get_logger()


class ClaimLoop(ABC, Generic[T, Group]):
    """Service that claims items and runs `_work` for each, at most `max_running` at a time.

    Args:
        name: Name of the items in log events.
        max_running: Number of items to work on at a time.
        claim_seconds: Time that a claim in progress gets to end after a cancellation.
        drain_seconds: Time that running work gets to end after a cancellation, less the time of the server's own stop.
    """

    def __init__(
        self, services: Services, name: str, *, max_running: int, claim_seconds: float, drain_seconds: float
    ) -> None:
        self._services = services
        self._name = name
        self._max_running = max_running
        self._claim_seconds = claim_seconds
        self._drain_seconds = drain_seconds
        self._running = dict[asyncio.Task[None], Group]()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Claim and work until cancelled; then wait for the work that is running, and cancel the rest."""
        try:
            while True:
                while len(self._running) >= self._max_running:
                    self._changed.clear()
                    await self._changed.wait()
                self._changed.clear()
                # Shielded: a claim that is cut off could leave leased items that this process does not know.
                if not await self._services.runtime.background.shielded(self._start_claimed(), self._claim_seconds):
                    await self._wait()
        finally:
            await drain(self._running, self._services.runtime.shutdown.seconds_left(self._drain_seconds))

    async def _start_claimed(self) -> bool:
        """Claim items and start a task for each; return False if there were none."""
        try:
            items = await self._claim()
        except Exception as error:  # noqa: BLE001 -- the store is unavailable; the next claim retries
            log.warning("claim_failed", items=self._name, error=repr(error))
            await asyncio.sleep(RETRY_SECONDS)
            return False
        for item in items:
            task = self._services.runtime.background.spawn(self._work(item))
            self._running[task] = self._group(item)
            task.add_done_callback(self._on_done)
        return bool(items)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._changed.set()

    @abstractmethod
    async def _claim(self) -> Sequence[T]:
        """Claim due items, at most as many as there are free places in `_running`."""

    @abstractmethod
    async def _work(self, item: T) -> None:
        """Work on one item."""

    @abstractmethod
    def _group(self, item: T) -> Group:
        """Return the group among whose running items this one counts; it is the value of the task in `_running`."""

    @abstractmethod
    async def _wait(self) -> None:
        """Wait until there may be more items to claim, or `_changed` is set."""
