"""Waiting for a job to change, whoever changes it: news rings at once, and a batched query is the net."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator

import structlog

from signoff.store import Store, Topic

NET_SECONDS = 0.5
log = structlog.get_logger()


class ChangeEvent(asyncio.Event):
    """Rings when its job has changed since `seq`."""

    def __init__(self) -> None:
        super().__init__()
        self.seq = 0


class JobWatcher:
    """The jobs that somebody in this process waits for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events: dict[str, list[ChangeEvent]] = {}

    @contextlib.contextmanager
    def watch(self, job_id: str) -> Generator[ChangeEvent]:
        """A bell for `job_id`, while the block runs."""
        bell = ChangeEvent()
        self._events.setdefault(job_id, []).append(bell)
        try:
            yield bell
        finally:
            self._events[job_id].remove(bell)
            if not self._events[job_id]:
                del self._events[job_id]

    def on_change(self, topic: Topic, name: str) -> None:
        """News from the store."""
        if topic == "job":
            for bell in self._events.get(name, ()):
                bell.set()

    async def run(self) -> None:
        """Looks after everything that is waited for, twice a second, for ever: news may be lost."""
        while True:
            await asyncio.sleep(NET_SECONDS)
            if self._events:
                await self.check()

    async def check(self) -> None:
        """Rings for every job that has changed."""
        try:
            found = await self._store.jobs.statuses(list(self._events))
        except Exception as error:  # noqa: BLE001 -- the store is away; the next look may find it
            log.warning("could not look after the jobs that are waited for", error=repr(error))
            return
        for job_id, (_, seq) in found.items():
            for bell in self._events.get(job_id, ()):
                if seq > bell.seq:
                    bell.set()
