"""In-memory deliveries: claims, outcomes and queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from signoff.core.backlog import DeliveryDepth
from signoff.core.delivery import Delivery, DeliveryKind, DeliveryOutcome
from signoff.core.times import SECOND_US
from signoff.errors import Stale, no_delivery
from signoff.stores.deliveries import MAX_CANDIDATES
from signoff.stores.deliveries import _within_limits as within_limits
from simulation.tables import Connection, Tables, Tx


class MemoryDeliveries:
    """In-memory implementation of `store.Deliveries`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def claim(
        self,
        kind: DeliveryKind,
        *,
        lease: str,
        limit: int,
        limit_per_host: int,
        busy: Mapping[str, int],
        lease_seconds: float,
    ) -> list[Delivery]:
        def claim(tx: Tx) -> list[Delivery]:
            due = [
                delivery
                for delivery in self._tables.deliveries.values()
                if delivery.state == "due" and delivery.due_at <= tx.now
            ]
            free = [
                delivery
                for delivery in due
                if delivery.kind == kind and _is_free(delivery, tx.now) and busy.get(delivery.host, 0) < limit_per_host
            ]
            free.sort(key=lambda delivery: delivery.due_at)
            until = tx.now + round(lease_seconds * SECOND_US)
            for name in within_limits(free[:MAX_CANDIDATES], limit, limit_per_host, busy):  # type: ignore[arg-type]
                delivery = self._tables.deliveries[name]
                changes = {"lease": lease, "lease_until": until, "attempt": delivery.attempt + 1}
                tx.deliveries[name] = msgspec.structs.replace(delivery, **changes)
            return list(tx.deliveries.values())

        return await self._connection.send(claim, writes=True)

    async def settle(self, delivery_id: str, lease: str, outcome: DeliveryOutcome) -> bool:
        def settle(tx: Tx) -> bool:
            delivery = self._tables.deliveries.get(delivery_id)
            if delivery is None or delivery.lease != lease:
                return False
            changes = {"last_status": outcome.status, "last_error": outcome.error} if outcome.counts else {}
            tx.deliveries[delivery.id] = msgspec.structs.replace(
                delivery,
                state=outcome.state,
                attempt=delivery.attempt if outcome.counts else delivery.attempt - 1,
                due_at=tx.now + round(outcome.after_seconds * SECOND_US),
                done_at=None if outcome.state == "due" else tx.now,
                lease=None,
                lease_until=None,
                **changes,
            )
            return True

        return await self._connection.send(settle, writes=True)

    async def depths(self, *, at_most: int) -> list[DeliveryDepth]:
        def read(tx: Tx) -> list[DeliveryDepth]:
            depths = list[DeliveryDepth]()
            for kind in get_args(DeliveryKind):
                due = [each for each in self._tables.deliveries.values() if (each.kind, each.state) == (kind, "due")]
                if due:
                    overdue = max(0.0, (tx.now - min(each.due_at for each in due)) / SECOND_US)
                    depths.append(DeliveryDepth(kind=kind, pending=min(len(due), at_most), overdue_seconds=overdue))
            return depths

        return await self._connection.send(read, writes=False)

    async def get(self, delivery_id: str) -> Delivery | None:
        return await self._connection.send(lambda _: self._tables.deliveries.get(delivery_id), writes=False)

    async def of_job(self, job_id: str) -> list[Delivery]:
        def read(_: Tx) -> list[Delivery]:
            return [delivery for delivery in self._tables.deliveries.values() if delivery.job_id == job_id]

        return await self._connection.send(read, writes=False)

    async def failed(self, limit: int) -> list[Delivery]:
        def read(_: Tx) -> list[Delivery]:
            given_up = [delivery for delivery in self._tables.deliveries.values() if delivery.state == "failed"]
            return sorted(given_up, key=lambda delivery: delivery.id, reverse=True)[:limit]

        return await self._connection.send(read, writes=False)

    async def redeliver(self, delivery_id: str) -> Delivery:
        def redeliver(tx: Tx) -> Delivery:
            delivery = self._tables.deliveries.get(delivery_id)
            if delivery is None:
                raise no_delivery(delivery_id)
            if not _is_free(delivery, tx.now):
                raise Stale(f"The delivery {delivery_id} is being sent; try again when this attempt has ended.")
            changes: dict[str, Any] = {"state": "due", "attempt": 0, "due_at": tx.now}
            changes |= {"done_at": None, "lease": None, "lease_until": None}
            tx.deliveries[delivery.id] = redelivered = msgspec.structs.replace(delivery, **changes)
            tx.changes.append(("delivery", delivery.kind))
            return redelivered

        return await self._connection.send(redeliver, writes=True)


def _is_free(delivery: Delivery, now: int) -> bool:
    return delivery.lease is None or (delivery.lease_until is not None and delivery.lease_until < now)
