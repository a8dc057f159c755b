"""The leases that this process holds, renewed together; a lost one stops its work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator

import structlog

from signoff.store import Store, Topic

log = structlog.get_logger()


class Leases:
    """Leases by job id."""

    def __init__(self, store: Store, *, lease_seconds: float, heartbeat_seconds: float) -> None:
        self._store = store
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._held: dict[str, tuple[str, Callable[[], object]]] = {}
        self._check = asyncio.Event()

    def add(self, job_id: str, lease: str, on_lost: Callable[[], object]) -> None:
        """Keeps the lease alive from now on; calls `on_lost` once if it is gone."""
        self._held[job_id] = (lease, on_lost)

    def drop(self, job_id: str) -> None:
        """Lets it run out."""
        self._held.pop(job_id, None)

    def mark_lost(self, job_id: str) -> bool:
        """Calls its `on_lost` now, and lets it run out; whether it was held."""
        _, on_lost = self._held.pop(job_id, (None, None))
        if on_lost is not None:
            on_lost()
        return on_lost is not None

    @contextlib.contextmanager
    def holding(self, job_id: str, lease: str, on_lost: Callable[[], object]) -> Generator[None]:
        """Keeps the lease alive while the block runs, and no longer; the next lease of the same job is left alone."""
        self.add(job_id, lease, on_lost)
        try:
            yield
        finally:
            if self._held.get(job_id) == (lease, on_lost):
                self.drop(job_id)

    def on_change(self, topic: Topic, name: str) -> None:
        """News from the store: a job of ours may have been cancelled."""
        if topic == "any" or (topic == "job" and name in self._held):
            self._check.set()

    async def run(self) -> None:
        """Renews at every heartbeat, and whenever there is news of a job of ours, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_seconds):
                    await self._check.wait()
            self._check.clear()
            await self.renew()

    async def renew(self) -> None:
        """Renews every lease once, and tells whoever has lost theirs."""
        asked = {job_id: lease for job_id, (lease, _) in self._held.items()}
        if not asked:
            return
        try:
            standing = await self._store.jobs.renew(asked, self._lease_seconds)
        except Exception as error:  # noqa: BLE001 -- the store is away; the lease has some time left
            log.warning("could not renew leases", error=repr(error), leases=len(asked))
            return
        for job_id in [job_id for job_id in asked if job_id not in standing]:
            lease, on_lost = self._held.get(job_id, (None, None))
            if lease == asked[job_id] and on_lost is not None:
                del self._held[job_id]
                on_lost()
