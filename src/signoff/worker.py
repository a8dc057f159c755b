"""The worker: takes due jobs, performs them, and gives back what it cannot finish."""

from __future__ import annotations

import asyncio

import structlog

from signoff.core.job import Job
from signoff.parts.background import drain
from signoff.store import Topic
from signoff.work.desk import Desk
from signoff.work.perform import perform

LOOK_SECONDS = 1.0
TAKE_SECONDS = 5.0
log = structlog.get_logger()


class Worker:
    """Performs up to `concurrency` jobs at a time."""

    def __init__(self, desk: Desk, *, concurrency: int, drain_seconds: float) -> None:
        self._desk = desk
        self._concurrency = concurrency
        self._drain_seconds = drain_seconds
        self._running = set[asyncio.Task[None]]()
        self._slot_free = asyncio.Event()

    async def run(self) -> None:
        """Takes and performs until cancelled; then waits a while for what runs, and gives the rest back."""
        try:
            while True:
                await self._wait_for_a_slot()
                if not await self._desk.background.whole(self._take(), TAKE_SECONDS):
                    await self._desk.broker.heard(LOOK_SECONDS)
        finally:
            await drain(self._running, self._drain_seconds)

    def hear(self, topic: Topic, name: str) -> None:
        """News from the store: another process may have submitted something."""
        if topic in {"due", "any"}:
            self._desk.broker.nudge()

    async def _wait_for_a_slot(self) -> None:
        while len(self._running) >= self._concurrency:
            self._slot_free.clear()
            await self._slot_free.wait()

    async def _take(self) -> bool:
        """Claims as many due jobs as there are free slots, and starts them; whether there were any.

        Cut off, it may have claimed some, and nobody would know of them.
        """
        desk = self._desk
        try:
            jobs = await desk.store.jobs.claim(
                actor=desk.actor,
                lease=desk.new_id(),
                limit=self._concurrency - len(self._running),
                lease_seconds=desk.rules.lease_seconds,
            )
        except Exception as error:  # noqa: BLE001 -- the store is away; the next look may find it
            log.warning("could not claim", error=repr(error))
            await asyncio.sleep(LOOK_SECONDS)
            return False
        for job in jobs:
            self._start(job)
        return bool(jobs)

    def _start(self, job: Job) -> None:
        task = self._desk.background.spawn(perform(self._desk, job))
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._slot_free.set()
