"""Reservations under limits that this process holds, renewed together."""

import asyncio

import structlog

from signoff.accounts import Limits
from signoff.core.limits import Reservation

BATCH_SIZE = 500
log = structlog.get_logger()


class Reservations:
    """Reservations by request id. Those of a process that crashed expire after `lease_seconds`."""

    def __init__(self, limits: Limits, *, lease_seconds: float, heartbeat_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._limits = limits
        self._heartbeat_seconds = heartbeat_seconds
        self._by_request_id: dict[str, Reservation] = {}

    def add(self, reservation: Reservation) -> None:
        """Start renewing the reservation, if it can expire."""
        if reservation.tracks_pending:
            self._by_request_id[reservation.request.id] = reservation

    def drop(self, reservation: Reservation) -> None:
        """Stop renewing a reservation that was settled."""
        self._by_request_id.pop(reservation.request.id, None)

    async def run(self) -> None:
        """Renew at every heartbeat. Never returns."""
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await self.renew()

    async def renew(self) -> None:
        """Renew every reservation once."""
        ids = list(self._by_request_id)
        for start in range(0, len(ids), BATCH_SIZE):
            batch = ids[start : start + BATCH_SIZE]
            reservations = [
                self._by_request_id[request_id] for request_id in batch if request_id in self._by_request_id
            ]
            try:
                await self._limits.renew(reservations, self.lease_seconds)
            except Exception as error:  # noqa: BLE001 -- the store is unavailable; the next heartbeat retries
                log.warning("reservation_renewal_failed", error=repr(error), reservations=len(reservations))
