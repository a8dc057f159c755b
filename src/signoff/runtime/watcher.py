"""Waiting for changes of jobs by any process: notifications, and a periodic query in case they are lost."""

import asyncio
import contextlib
from collections.abc import Generator

import structlog

from signoff.store import Store, Topic

POLL_SECONDS = 0.5
MIN_PAUSE_SECONDS = 0.02
log = structlog.get_logger()


class ChangeEvent(asyncio.Event):
    """Event that is set when its job has changed since `seq`, which the caller sets."""

    def __init__(self) -> None:
        super().__init__()
        self.seq = 0


class JobWatcher:
    """Jobs that this process waits for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events: dict[str, list[ChangeEvent]] = {}
        self._must_check = asyncio.Event()

    @contextlib.contextmanager
    def watch(self, job_id: str) -> Generator[ChangeEvent]:
        """Yield an event for `job_id`, which is watched for the duration of the block."""
        event = ChangeEvent()
        self._events.setdefault(job_id, []).append(event)
        try:
            yield event
        finally:
            self._events[job_id].remove(event)
            if not self._events[job_id]:
                del self._events[job_id]

    def on_change(self, topic: Topic, name: str) -> None:
        """Handle a notification from the store."""
        if topic == "job":
            for event in self._events.get(name, ()):
                event.set()
        elif topic == "any":
            self._must_check.set()

    async def run(self) -> None:
        """Check all watched jobs after `any`, and every POLL_SECONDS in case notifications are lost. Never returns."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._must_check.wait()
            self._must_check.clear()
            if self._events:
                await self.check()
            await asyncio.sleep(MIN_PAUSE_SECONDS)

    async def check(self) -> None:
        """Set the events of all jobs that have changed."""
        try:
            statuses = await self._store.jobs.statuses(list(self._events))
        except Exception as error:  # noqa: BLE001 -- the store is unavailable; the next check retries
            log.warning("job_watch_failed", error=repr(error))
            return
        for job_id, (_, seq) in statuses.items():
            for event in self._events.get(job_id, ()):
                if seq > event.seq:
                    event.set()
