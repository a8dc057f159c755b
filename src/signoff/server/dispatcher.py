"""Delivery dispatcher: sends due deliveries of one kind. Every delivery is leased, so any number may run at once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence

from signoff.core.delivery import Delivery, DeliveryKind
from signoff.server.claim_loop import ClaimLoop
from signoff.store import Topic
from signoff.work.jobs.deliver import deliver
from signoff.work.services import Services

MAX_RUNNING: dict[DeliveryKind, int] = {"webhook": 16, "redis": 64, "topic": 128}
MAX_RUNNING_PER_HOST: dict[DeliveryKind, int] = {"webhook": 4, "redis": 64, "topic": 32}
LEASE_SECONDS = 60.0
SEND_SECONDS = 30.0
MAX_DRAIN_SECONDS: dict[DeliveryKind, float] = {"webhook": SEND_SECONDS, "redis": 1.0, "topic": 1.0}
CLAIM_SECONDS = 2.0


class Dispatcher(ClaimLoop[Delivery, str]):
    """Service that sends up to MAX_RUNNING deliveries at a time, MAX_RUNNING_PER_HOST to one host.

    The limit per host keeps a slow receiver from delaying the deliveries to others.
    """

    def __init__(self, services: Services, kind: DeliveryKind, *, drain_seconds: float) -> None:
        super().__init__(
            services,
            f"{kind} deliveries",
            max_running=MAX_RUNNING[kind],
            claim_seconds=CLAIM_SECONDS,
            drain_seconds=min(drain_seconds, MAX_DRAIN_SECONDS[kind]),
        )
        self._kind: DeliveryKind = kind

    def on_change(self, topic: Topic, name: str) -> None:
        """Handle a notification from the store: a delivery may be due."""
        if topic == "any" or (topic, name) == ("delivery", self._kind):
            self._changed.set()

    async def _claim(self) -> Sequence[Delivery]:
        return await self._services.store.deliveries.claim(
            self._kind,
            lease=self._services.ids.new_id(),
            limit=self._max_running - len(self._running),
            limit_per_host=MAX_RUNNING_PER_HOST[self._kind],
            busy=Counter(self._running.values()),
            lease_seconds=LEASE_SECONDS,
        )

    async def _work(self, item: Delivery) -> None:
        """Make one attempt, which ends well within its lease."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEND_SECONDS):
                await deliver(self._services, item)

    def _group(self, item: Delivery) -> str:
        return item.host

    async def _wait(self) -> None:
        """Wait for a notification or the end of a delivery, at most until the next backoff may be over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._services.rules.sweep_seconds):
                await self._changed.wait()
