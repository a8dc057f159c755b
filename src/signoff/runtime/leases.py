"""Leases of the jobs that this process works on, renewed together."""

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
        self._changed = asyncio.Event()

    @property
    def number(self) -> int:
        """Number of leases that are held."""
        return len(self._held)

    def add(self, job_id: str, lease: str, on_lost: Callable[[], object]) -> None:
        """Start renewing the lease. `on_lost` is called once if it is lost."""
        self._held[job_id] = (lease, on_lost)

    def drop(self, job_id: str) -> None:
        """Stop renewing the lease; it expires."""
        self._held.pop(job_id, None)

    def mark_lost(self, job_id: str) -> bool:
        """Call the lease's `on_lost` and stop renewing it. Return False if it was not held."""
        _, on_lost = self._held.pop(job_id, (None, None))
        if on_lost is not None:
            on_lost()
        return on_lost is not None

    @contextlib.contextmanager
    def holding(self, job_id: str, lease: str, on_lost: Callable[[], object]) -> Generator[None]:
        """Renew the lease for the duration of the block. A later lease of the same job is not affected."""
        self.add(job_id, lease, on_lost)
        try:
            yield
        finally:
            if self._held.get(job_id) == (lease, on_lost):
                self.drop(job_id)

    def on_change(self, topic: Topic, name: str) -> None:
        """Handle a notification from the store: one of our jobs may have been cancelled."""
        if topic == "any" or (topic == "job" and name in self._held):
            self._changed.set()

    async def run(self) -> None:
        """Renew at every heartbeat and after each notification of one of our jobs. Never returns."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_seconds):
                    await self._changed.wait()
            self._changed.clear()
            await self.renew()

    async def renew(self) -> None:
        """Renew every lease once, and call `on_lost` of those that are lost."""
        leases = {job_id: lease for job_id, (lease, _) in self._held.items()}
        if not leases:
            return
        try:
            renewed = await self._store.jobs.renew(leases, self._lease_seconds)
        except Exception as error:  # noqa: BLE001 -- the store is unavailable; the next heartbeat retries
            log.warning("lease_renewal_failed", error=repr(error), leases=len(leases))
            return
        for job_id in [job_id for job_id in leases if job_id not in renewed]:
            lease, on_lost = self._held.get(job_id, (None, None))
            if lease == leases[job_id] and on_lost is not None:
                del self._held[job_id]
                on_lost()
