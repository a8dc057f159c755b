"""In-memory deliveries: claims, outcomes and queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from signoff.core.delivery import Delivery, DeliveryKind, DeliveryOutcome
from signoff.errors import NotFound, Stale
from signoff.stores.deliveries import MAX_CANDIDATES
from signoff.stores.deliveries import _within_limits as within_limits
from signoff.stores.transitions import SECOND
from simulation.tables import Tables, Tx, Way


class MemoryDeliveries:
    """In-memory implementation of `store.Deliveries`."""

    def __init__(self, tables: Tables, way: Way) -> None:
        self._tables = tables
        self._way = way

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
            due = [one for one in self._tables.deliveries.values() if one.state == "due" and one.due_at <= tx.now]
            free = [
                one
                for one in due
                if one.kind == kind and _is_free(one, tx.now) and busy.get(one.host, 0) < limit_per_host
            ]
            free.sort(key=lambda one: one.due_at)
            until = tx.now + round(lease_seconds * SECOND)
            for name in within_limits(free[:MAX_CANDIDATES], limit, limit_per_host, busy):  # type: ignore[arg-type]
                one = self._tables.deliveries[name]
                taken = {"lease": lease, "lease_until": until, "attempt": one.attempt + 1}
                tx.deliveries[name] = msgspec.structs.replace(one, **taken)
            return list(tx.deliveries.values())

        return await self._way.send(claim, writes=True)

    async def settle(self, delivery_id: str, lease: str, outcome: DeliveryOutcome) -> bool:
        def settle(tx: Tx) -> bool:
            one = self._tables.deliveries.get(delivery_id)
            if one is None or one.lease != lease:
                return False
            told = {"last_status": outcome.status, "last_error": outcome.error} if outcome.counts else {}
            tx.deliveries[one.id] = msgspec.structs.replace(
                one,
                state=outcome.state,
                attempt=one.attempt if outcome.counts else one.attempt - 1,
                due_at=tx.now + round(outcome.after_seconds * SECOND),
                done_at=None if outcome.state == "due" else tx.now,
                lease=None,
                lease_until=None,
                **told,
            )
            return True

        return await self._way.send(settle, writes=True)

    async def get(self, delivery_id: str) -> Delivery | None:
        return await self._way.send(lambda _: self._tables.deliveries.get(delivery_id), writes=False)

    async def of_job(self, job_id: str) -> list[Delivery]:
        def look(_: Tx) -> list[Delivery]:
            return [one for one in self._tables.deliveries.values() if one.job_id == job_id]

        return await self._way.send(look, writes=False)

    async def failed(self, limit: int) -> list[Delivery]:
        def look(_: Tx) -> list[Delivery]:
            given_up = [one for one in self._tables.deliveries.values() if one.state == "failed"]
            return sorted(given_up, key=lambda one: one.id, reverse=True)[:limit]

        return await self._way.send(look, writes=False)

    async def redeliver(self, delivery_id: str) -> Delivery:
        def redeliver(tx: Tx) -> Delivery:
            one = self._tables.deliveries.get(delivery_id)
            if one is None:
                raise NotFound(f"There is no delivery {delivery_id}.")
            if not _is_free(one, tx.now):
                raise Stale(f"The delivery {delivery_id} is being sent; try again when this attempt has ended.")
            anew: dict[str, Any] = {"state": "due", "attempt": 0, "due_at": tx.now}
            anew |= {"done_at": None, "lease": None, "lease_until": None}
            tx.deliveries[one.id] = again = msgspec.structs.replace(one, **anew)
            tx.changes.append(("delivery", one.kind))
            return again

        return await self._way.send(redeliver, writes=True)


def _is_free(one: Delivery, now: int) -> bool:
    return one.lease is None or (one.lease_until is not None and one.lease_until < now)
