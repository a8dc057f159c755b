"""Worker: performs due jobs. Jobs that it cannot finish before it stops become due again."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple, TypeVar

import msgspec

from signoff.core.job import Job
from signoff.core.turn import Turn
from signoff.server.claim_loop import ClaimLoop
from signoff.store import Topic
from signoff.work.perform import perform
from signoff.work.services import Services

POLL_SECONDS = 1.0
CLAIM_SECONDS = 5.0
T = TypeVar("T")


class Owner(NamedTuple):
    """The model and the user that a running job counts for."""

    model: str
    user_id: int


class Worker(ClaimLoop[Job, Owner]):
    """Service that performs up to `concurrency` jobs at a time, of which each model and each user gets only a share.

    Users take turns, so that a user with a large backlog does not delay the jobs of others.
    """

    def __init__(self, services: Services, *, concurrency: int, drain_seconds: float) -> None:
        super().__init__(
            services, "jobs", max_running=concurrency, claim_seconds=CLAIM_SECONDS, drain_seconds=drain_seconds
        )
        self._turn = Turn()
        self._fruitless: tuple[tuple[str, ...], tuple[int, ...]] | None = None
        """Full models and users beside which a claim found no job, and no wake-up has come since."""
        self._fruitless_until = 0.0
        """Time from which a claim may find one all the same, as jobs become due without a wake-up."""

    def on_change(self, topic: Topic, name: str) -> None:
        """Handle a notification from the store: another process may have submitted a job."""
        if topic in {"due", "any"}:
            self._services.adapters.broker.wake_local()

    async def _claim(self) -> Sequence[Job]:
        if self._services.runtime.shutdown.is_draining:
            return ()
        limit, self._turn = self._next_claim()
        full, now = (self._turn.full_models, self._turn.full_users), asyncio.get_running_loop().time()
        if full == self._fruitless and now < self._fruitless_until:
            return ()
        jobs = await self._services.store.jobs.claim(
            actor=self._services.ids.actor,
            lease=self._services.ids.new_id(),
            limit=limit,
            lease_seconds=self._services.rules.lease_seconds,
            turn=self._turn,
        )
        if jobs:
            self._turn = msgspec.structs.replace(self._turn, after_user=jobs[-1].user_id)
        else:
            self._fruitless, self._fruitless_until = full, now + POLL_SECONDS
        return jobs

    async def _work(self, item: Job) -> None:
        await perform(self._services, item)

    def _group(self, item: Job) -> Owner:
        return Owner(item.model, item.user_id)

    async def _wait(self) -> None:
        """Wait for a wake-up, at most POLL_SECONDS; after either, every turn may find jobs again.

        If the last claim passed over the jobs of a model or user that had its share, the end of a job is a wake-up too,
        also one during the claim.
        """
        if not (self._turn.full_models or self._turn.full_users):
            await self._services.adapters.broker.poll(POLL_SECONDS)
            self._fruitless = None
            return
        async with asyncio.TaskGroup() as group:
            poll = group.create_task(self._services.adapters.broker.poll(POLL_SECONDS))
            tasks = {poll, group.create_task(self._changed.wait())}
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
        if poll in done:
            self._fruitless = None

    def _next_claim(self) -> tuple[int, Turn]:
        """Return how many jobs to claim, and the turn without the models and users that have their share.

        So a model or user whose jobs hang delays no other. The number is so small that none can exceed its share.
        """
        free, rules = self._max_running - len(self._running), self._services.rules
        models = _capacities((owner.model for owner in self._running.values()), free, rules.model_share)
        users = _capacities((owner.user_id for owner in self._running.values()), free, rules.user_share)
        remainders = [left for left in (*models.values(), *users.values()) if left > 0]
        limit = min(_share(free, rules.model_share), _share(free, rules.user_share), *remainders)
        full_models = tuple(sorted(model for model, left in models.items() if left <= 0))
        full_users = tuple(sorted(user for user, left in users.items() if left <= 0))
        return limit, Turn(after_user=self._turn.after_user, full_models=full_models, full_users=full_users)


def _capacities(running: Iterable[T], free: int, share: float) -> dict[T, int]:
    """Return how many more jobs each model or user of the running jobs may have.

    A share is a part of the slots that others leave, so the second one whose jobs hang gets less than the first.
    """
    return {each: _share(free + count, share) - count for each, count in Counter(running).items()}


def _share(slots: int, share: float) -> int:
    """Return how many of `slots` one model or user may use: of three or more, not all unless the share is 1."""
    return ceil(slots * share) if share == 1 or slots < 3 else min(ceil(slots * share), slots - 1)
