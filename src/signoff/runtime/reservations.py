"""The rooms under limits that this process has reserved for what it does, kept while it lives."""

from __future__ import annotations

import asyncio

import structlog

from signoff.core.limits import Reservation
from signoff.store import Quotas

AT_ONCE = 500
log = structlog.get_logger()


class Reservations:
    """Rooms by the ids of their jobs. Those of a process that vanished lapse after `lease_seconds`."""

    def __init__(self, quotas: Quotas, *, lease_seconds: float, heartbeat_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._quotas = quotas
        self._heartbeat_seconds = heartbeat_seconds
        self._held: dict[str, Reservation] = {}

    def add(self, reservation: Reservation) -> None:
        """Keeps it from now on, where it could lapse."""
        if reservation.tracks_pending:
            self._held[reservation.request.id] = reservation

    def drop(self, reservation: Reservation) -> None:
        """It is settled."""
        self._held.pop(reservation.request.id, None)

    async def run(self) -> None:
        """Renews at every heartbeat, for ever."""
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await self.renew()

    async def renew(self) -> None:
        """Renews every room once."""
        held = list(self._held)
        for start in range(0, len(held), AT_ONCE):
            reservations = [self._held[name] for name in held[start : start + AT_ONCE] if name in self._held]
            try:
                await self._quotas.renew(reservations, self.lease_seconds)
            except Exception as error:  # noqa: BLE001 -- the store is away; they have some time left
                log.warning("could not renew what was reserved", error=repr(error), reservations=len(reservations))
