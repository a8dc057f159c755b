"""Worker: performs due jobs. Jobs that it cannot finish before it stops become due again."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from math import ceil

from signoff.core.job import Job
from signoff.server.claim_loop import ClaimLoop
from signoff.store import Topic
from signoff.work.perform import perform
from signoff.work.services import Services

POLL_SECONDS = 1.0
CLAIM_SECONDS = 5.0


class Worker(ClaimLoop[Job]):
    """Service that performs up to `concurrency` jobs at a time, of which each model gets only a share."""

    def __init__(self, services: Services, *, concurrency: int, drain_seconds: float) -> None:
        super().__init__(
            services, "jobs", max_running=concurrency, claim_seconds=CLAIM_SECONDS, drain_seconds=drain_seconds
        )
        self._has_passed_over = False

    def on_change(self, topic: Topic, name: str) -> None:
        """Handle a notification from the store: another process may have submitted a job."""
        if topic in {"due", "any"}:
            self._services.adapters.broker.wake_local()

    async def _claim(self) -> Sequence[Job]:
        limit, full_models = self._capacity()
        self._has_passed_over = bool(full_models)
        return await self._services.store.jobs.claim(
            actor=self._services.ids.actor,
            lease=self._services.ids.new_id(),
            limit=limit,
            lease_seconds=self._services.rules.lease_seconds,
            full=full_models,
        )

    async def _work(self, item: Job) -> None:
        await perform(self._services, item)

    def _group(self, item: Job) -> str:
        return item.model

    async def _wait(self) -> None:
        """Wait for a wake-up, at most POLL_SECONDS.

        If the last claim passed over the jobs of a model that had its share, the end of a job is a wake-up too, also
        one during the claim.
        """
        if not self._has_passed_over:
            await self._services.adapters.broker.poll(POLL_SECONDS)
            return
        async with asyncio.TaskGroup() as group:
            tasks = {
                group.create_task(self._services.adapters.broker.poll(POLL_SECONDS)),
                group.create_task(self._changed.wait()),
            }
            _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()

    def _capacity(self) -> tuple[int, list[str]]:
        """Return how many jobs to claim, and the models that have their share, so that a slow one delays no other.

        A share is a part of the slots that other models leave, so the second model that hangs gets less than the first.
        The number to claim is so small that no model can exceed its share.
        """
        free = self._max_running - len(self._running)
        capacity = {model: self._share(free + held) - held for model, held in Counter(self._running.values()).items()}
        full_models = sorted(model for model, left in capacity.items() if left <= 0)
        return min([self._share(free), *(left for left in capacity.values() if left > 0)]), full_models

    def _share(self, slots: int) -> int:
        return max(1, ceil(slots * self._services.rules.model_share))
