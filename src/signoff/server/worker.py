"""The worker: takes due jobs, performs them, and gives back what it cannot finish."""

from __future__ import annotations

import asyncio
from collections import Counter
from math import ceil

import structlog

from signoff.core.job import Job
from signoff.runtime.background import drain
from signoff.store import Topic
from signoff.work.perform import perform
from signoff.work.services import Services

LOOK_SECONDS = 1.0
TAKE_SECONDS = 5.0
log = structlog.get_logger()


class Worker:
    """Performs up to `concurrency` jobs at a time, and not more than their share of one model."""

    def __init__(self, services: Services, *, concurrency: int, drain_seconds: float) -> None:
        self._services = services
        self._concurrency = concurrency
        self._drain_seconds = drain_seconds
        self._running = dict[asyncio.Task[None], str]()
        self._slot_free = asyncio.Event()

    async def run(self) -> None:
        """Takes and performs until cancelled; then waits a while for what runs, and gives the rest back."""
        try:
            while True:
                await self._wait_for_a_slot()
                self._slot_free.clear()
                if not await self._services.runtime.background.shielded(self._take(), TAKE_SECONDS):
                    await self._rest()
        finally:
            await drain(self._running, self._drain_seconds)

    def on_change(self, topic: Topic, name: str) -> None:
        """News from the store: another process may have submitted something."""
        if topic in {"due", "any"}:
            self._services.adapters.broker.wake_local()

    async def _wait_for_a_slot(self) -> None:
        while len(self._running) >= self._concurrency:
            self._slot_free.clear()
            await self._slot_free.wait()

    async def _rest(self) -> None:
        """Until there may be something to take: a bell rings, or a job ends whose model has its share."""
        if not self._room()[1]:
            await self._services.adapters.broker.poll(LOOK_SECONDS)
            return
        async with asyncio.TaskGroup() as group:
            either = {group.create_task(self._services.adapters.broker.poll(LOOK_SECONDS))}
            either.add(group.create_task(self._freed()))
            _, late = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            for task in late:
                task.cancel()

    async def _freed(self) -> bool:
        return await self._slot_free.wait()

    async def _take(self) -> bool:
        """Claims as many due jobs as there are free slots, and starts them; whether there were any.

        Cut off, it may have claimed some, and nobody would know of them.
        """
        services = self._services
        limit, full = self._room()
        try:
            jobs = await services.store.jobs.claim(
                actor=services.ids.actor,
                lease=services.ids.new_id(),
                limit=limit,
                lease_seconds=services.rules.lease_seconds,
                full=full,
            )
        except Exception as error:  # noqa: BLE001 -- the store is away; the next look may find it
            log.warning("could not claim", error=repr(error))
            await asyncio.sleep(LOOK_SECONDS)
            return False
        for job in jobs:
            self._start(job)
        return bool(jobs)

    def _room(self) -> tuple[int, list[str]]:
        """How many jobs to claim, and the models that have their share of the slots: one that hangs stalls no other.

        A share is a part of what the others leave, so the second that hangs gets less than the first. Nobody can
        exceed theirs by what is claimed at once.
        """
        free = self._concurrency - len(self._running)
        room = {model: self._share(free + held) - held for model, held in Counter(self._running.values()).items()}
        full = sorted(model for model, left in room.items() if left <= 0)
        return min([self._share(free), *(left for left in room.values() if left > 0)]), full

    def _share(self, slots: int) -> int:
        return max(1, ceil(slots * self._services.rules.model_share))

    def _start(self, job: Job) -> None:
        task = self._services.runtime.background.spawn(perform(self._services, job))
        self._running[task] = job.model
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._slot_free.set()
