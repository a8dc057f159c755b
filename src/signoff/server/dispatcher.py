"""The sender: takes due deliveries of one kind and sends them. Any number may send at once; every one is leased."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import structlog

from signoff.core.delivery import Delivery, DeliveryKind
from signoff.runtime.background import drain
from signoff.store import Topic
from signoff.work.jobs.deliver import deliver
from signoff.work.services import Services

AT_ONCE: dict[DeliveryKind, int] = {"webhook": 16, "redis": 64, "topic": 128}
AT_ONCE_PER_HOST: dict[DeliveryKind, int] = {"webhook": 4, "redis": 64, "topic": 32}
LEASE_SECONDS = 60.0
SEND_SECONDS = 30.0
LONGEST_DRAIN_SECONDS: dict[DeliveryKind, float] = {"webhook": SEND_SECONDS, "redis": 1.0, "topic": 1.0}
TAKE_SECONDS = 2.0
LOOK_AGAIN_SECONDS = 1.0
log = structlog.get_logger()


class Dispatcher:
    """Sends up to AT_ONCE deliveries at a time, AT_ONCE_PER_HOST to one host: who is slow stalls nobody else's."""

    def __init__(self, services: Services, kind: DeliveryKind, *, drain_seconds: float) -> None:
        self._services = services
        self._kind: DeliveryKind = kind
        self._drain_seconds = min(drain_seconds, LONGEST_DRAIN_SECONDS[kind])
        self._running = dict[asyncio.Task[None], str]()
        self._look = asyncio.Event()

    async def run(self) -> None:
        """Takes and sends until cancelled; then waits a while for what is under way, and gives the rest back."""
        try:
            while True:
                self._look.clear()
                if not await self._services.runtime.background.shielded(self._take(), TAKE_SECONDS):
                    await self._wait()
        finally:
            await drain(self._running, self._drain_seconds)

    def on_change(self, topic: Topic, name: str) -> None:
        """News from the store: there may be something to send."""
        if topic == "any" or (topic, name) == ("delivery", self._kind):
            self._look.set()

    async def _take(self) -> bool:
        """Claims what there is room for, and starts it; whether there was anything.

        Cut off, it may have claimed some, and nobody would know of them.
        """
        room = AT_ONCE[self._kind] - len(self._running)
        if room <= 0:
            return False
        try:
            taken = await self._services.store.deliveries.claim(
                self._kind,
                lease=self._services.ids.new_id(),
                limit=room,
                limit_per_host=AT_ONCE_PER_HOST[self._kind],
                busy=Counter(self._running.values()),
                lease_seconds=LEASE_SECONDS,
            )
        except Exception as error:  # noqa: BLE001 -- the store is away; the next look may find it
            log.warning("could not look for deliveries", error=repr(error))
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            return False
        for delivery in taken:
            task = self._services.runtime.background.spawn(self._send(delivery))
            self._running[task] = delivery.host
            task.add_done_callback(self._ended)
        return bool(taken)

    async def _send(self, delivery: Delivery) -> None:
        """One attempt, well within its lease."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEND_SECONDS):
                await deliver(self._services, delivery)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._look.set()

    async def _wait(self) -> None:
        """Until there is news, or something has ended, or it is time to look again: a wait may be over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._services.rules.sweep_seconds):
                await self._look.wait()
