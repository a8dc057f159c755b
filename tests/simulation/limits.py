"""In-memory limits and counters."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Sequence

from signoff.core.audit import change_of
from signoff.core.counters import Counter, expire
from signoff.core.limits import (
    Denial,
    Limit,
    LimitKind,
    Reservation,
    ReservationRequest,
    renew_reservations,
    settle_reservation,
    try_reserve,
)
from signoff.core.refusals import RefusalCount
from signoff.core.times import HOUR_US
from signoff.infra.actor import current_actor
from simulation.tables import Connection, Tables, Tx, record


class MemoryLimits:
    """In-memory implementation of `accounts.Limits`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def all(self) -> list[Limit]:
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
            if isinstance(reservation, Denial):
                of = (reservation.limit.name, reservation.kind, request.user_id, request.token_id)
                self._tables.refusals.append((tx.now // HOUR_US * HOUR_US, *of))
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

    async def refusals(self, since: int, *, user_id: int | None = None, limit: int = 50) -> list[RefusalCount]:
        def read(_: Tx) -> list[RefusalCount]:
            counts, hours = Counts[tuple[str, LimitKind, int, int]](), dict[tuple[str, LimitKind, int, int], int]()
            for hour, *of in self._tables.refusals:
                name, kind, owner, token_id = of
                if hour >= since // HOUR_US * HOUR_US and user_id in {None, owner}:
                    counts[name, kind, owner, token_id] += 1
                    hours[name, kind, owner, token_id] = max(hour, hours.get((name, kind, owner, token_id), 0))
            rows = sorted(counts, key=lambda of: (-counts[of], of[0], of[3]))
            return [
                RefusalCount(
                    limit_name=of[0],
                    kind=of[1],
                    email=next((user.email for user in self._tables.users.values() if user.id == of[2]), None),
                    token_id=of[3],
                    refused=counts[of],
                    hour=hours[of],
                )
                for of in rows[:limit]
            ]

        return await self._connection.send(read, writes=False)

    def _bump(self, tx: Tx) -> None:
        self._tables.versions["limits"] += 1
        tx.changes.append(("limits", ""))


def _name(limit: Limit) -> str:
    return limit.name
