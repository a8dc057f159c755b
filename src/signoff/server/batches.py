"""Batch runner: goes on with due batches. Every batch is leased, so any number of processes may run them."""

import asyncio
import contextlib
from collections.abc import Sequence

from signoff.core.batch import Batch
from signoff.server.claim_loop import ClaimLoop
from signoff.store import Topic
from signoff.work.batches.run import run_batch
from signoff.work.services import Services

MAX_RUNNING = 4
CLAIM_SECONDS = 2.0
# Interval of claims while batches wait for their lines; otherwise it is `sweep_seconds`.
POLL_SECONDS = 0.5


class BatchRunner(ClaimLoop[Batch, str]):
    """Service that goes on with up to MAX_RUNNING batches at a time, each for as long as it can make steps."""

    def __init__(self, services: Services) -> None:
        super().__init__(services, "batches", max_running=MAX_RUNNING, claim_seconds=CLAIM_SECONDS, drain_seconds=0.0)
        self._open_batches = set[str]()

    def on_change(self, topic: Topic, name: str) -> None:
        """Handle a notification from the store: a batch may be due."""
        if topic in {"batch", "any"}:
            self._changed.set()

    async def _claim(self) -> Sequence[Batch]:
        if self._services.runtime.shutdown.is_draining:
            return ()
        return await self._services.store.batches.claim(
            lease=self._services.ids.new_id(),
            limit=self._max_running - len(self._running),
            lease_seconds=self._services.rules.lease_seconds,
        )

    async def _work(self, item: Batch) -> None:
        if await run_batch(self._services, item):
            self._open_batches.discard(item.id)
        else:
            self._open_batches.add(item.id)

    def _group(self, item: Batch) -> str:
        return item.id

    async def _wait(self) -> None:
        """Wait for a notification, at most until a batch that waits may be due again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS if self._open_batches else self._services.rules.sweep_seconds):
                await self._changed.wait()
