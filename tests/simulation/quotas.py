"""In-memory limits and counters."""

from __future__ import annotations

from collections.abc import Sequence

from signoff.core.audit import change_of
from signoff.core.limits import (
    Counter,
    Denial,
    Limit,
    Reservation,
    ReservationRequest,
    expire,
    renew_reservations,
    settle_reservation,
    try_reserve,
)
from signoff.infra.actor import current_actor
from simulation.tables import Connection, Tables, Tx, record


class MemoryQuotas:
    """In-memory implementation of `accounts.Quotas`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def limits(self) -> list[Limit]:
        return await self._connection.send(lambda _: sorted(self._tables.limits.values(), key=_name), writes=False)

    async def put_limit(self, limit: Limit) -> None:
        actor = current_actor()

        def put(tx: Tx) -> None:
            old = self._tables.limits.get(limit.name)
            record(self._tables, tx, actor, change_of("limit", limit.name, old, limit))
            self._tables.limits[limit.name] = limit
            self._bump(tx)

        await self._connection.send(put, writes=True)

    async def drop_limit(self, name: str) -> bool:
        actor = current_actor()

        def drop(tx: Tx) -> bool:
            dropped = self._tables.limits.pop(name, None)
            if dropped is not None:
                record(self._tables, tx, actor, change_of("limit", name, dropped, None))
                self._bump(tx)
            return dropped is not None

        return await self._connection.send(drop, writes=True)

    async def reserve(self, request: ReservationRequest) -> Reservation | Denial:
        def reserve(tx: Tx) -> Reservation | Denial:
            after, reservation = try_reserve(self._tables.counters, request, tx.now)
            self._tables.counters.update(after)
            return reservation

        return await self._connection.send(reserve, writes=True)

    async def settle(self, reservation: Reservation, *, tokens: int = 0, cost: int = 0, was_sent: bool = True) -> None:
        def settle(tx: Tx) -> None:
            after = settle_reservation(
                self._tables.counters, reservation, tokens=tokens, cost=cost, was_sent=was_sent, now=tx.now
            )
            self._tables.counters.update(after)

        await self._connection.send(settle, writes=True)

    async def renew(self, reservations: Sequence[Reservation], lease_seconds: float) -> None:
        def renew(tx: Tx) -> None:
            self._tables.counters.update(renew_reservations(self._tables.counters, reservations, lease_seconds, tx.now))

        await self._connection.send(renew, writes=True)

    async def counters(self, names: Sequence[str]) -> dict[str, Counter]:
        def read(tx: Tx) -> dict[str, Counter]:
            return {name: expire(counter, tx.now) for name, counter in self._tables.counters.items() if name in names}

        return await self._connection.send(read, writes=False)

    def _bump(self, tx: Tx) -> None:
        self._tables.versions["limits"] += 1
        tx.changes.append(("limits", ""))


def _name(limit: Limit) -> str:
    return limit.name
