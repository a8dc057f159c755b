"""Deliveries, in SQL: claims, outcomes and queries."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy import Row

from signoff.core.backlog import DeliveryDepth
from signoff.core.delivery import Delivery, DeliveryKind, DeliveryOutcome
from signoff.core.times import SECOND_US
from signoff.errors import NotFound, Stale, no_delivery
from signoff.stores.database import Database
from signoff.stores.schema import deliveries
from signoff.stores.transaction import Tx

EVERY_COLUMN = tuple(deliveries.c)
MAX_CANDIDATES = 200
_NAMES = tuple(column.name for column in EVERY_COLUMN)


class SqlDeliveries:
    """Deliveries in a SQL database; see `records.Deliveries`."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        """See `records.Deliveries`."""

        def claim(tx: Tx) -> list[Delivery]:
            full = [host for host, count in busy.items() if count >= limit_per_host]
            candidates = tx.conn.execute(_CANDIDATES, {"now": tx.now, "kind": kind, "full": full}).all()
            ids = _within_limits(candidates, limit, limit_per_host, busy)
            until = tx.now + round(lease_seconds * SECOND_US)
            return _lease(tx, {"ids": ids, "new_lease": lease, "new_lease_until": until}) if ids else []

        return await self._database.write(claim)

    async def settle(self, delivery_id: str, lease: str, outcome: DeliveryOutcome) -> bool:
        """See `records.Deliveries`."""
        return await self._database.write(lambda tx: _settle(tx, delivery_id, lease, outcome))

    async def depths(self, *, at_most: int) -> list[DeliveryDepth]:
        """See `records.Deliveries`."""
        return await self._database.read(lambda conn, now: _read_depths(conn, now(), at_most))

    async def get(self, delivery_id: str) -> Delivery | None:
        """See `records.Deliveries`."""
        row = await self._database.read(lambda conn, _: conn.execute(_BY_ID, {"delivery": delivery_id}).one_or_none())
        return None if row is None else _delivery_of(row)

    async def of_job(self, job_id: str) -> list[Delivery]:
        """See `records.Deliveries`."""
        rows = await self._database.read(lambda conn, _: conn.execute(_OF_JOB, {"job": job_id}).all())
        return [_delivery_of(row) for row in rows]

    async def failed(self, limit: int) -> list[Delivery]:
        """See `records.Deliveries`."""
        rows = await self._database.read(lambda conn, _: conn.execute(_GIVEN_UP, {"limit": limit}).all())
        return [_delivery_of(row) for row in rows]

    async def redeliver(self, delivery_id: str) -> Delivery:
        """See `records.Deliveries`."""

        def make_due(tx: Tx) -> Delivery:
            row = tx.conn.execute(_RESEND, {"now": tx.now, "delivery": delivery_id}).one_or_none()
            if row is None:
                raise _resend_error(tx, delivery_id)
            tx.changes.append(("delivery", row.kind))
            return _delivery_of(row)

        return await self._database.write(make_due)


_NOW = sa.bindparam("now", type_=sa.BigInteger)
_ID = sa.bindparam("delivery", type_=sa.Text)
_LIMIT = sa.bindparam("limit", type_=sa.Integer)
# The state is a literal in the statement, because a partial index cannot serve a parameter.
_IS_DUE = (deliveries.c.state == sa.literal_column("'due'")) & (deliveries.c.due_at <= _NOW)
_IS_FREE = deliveries.c.lease.is_(None) | (deliveries.c.lease_until < _NOW)

_ALL = sa.select(*EVERY_COLUMN)
_BY_ID = _ALL.where(deliveries.c.id == _ID)
_OF_JOB = _ALL.where(deliveries.c.job_id == sa.bindparam("job", type_=sa.Text)).order_by(deliveries.c.id)
_GIVEN_UP = (
    _ALL.where(deliveries.c.state == sa.literal_column("'failed'")).order_by(deliveries.c.id.desc()).limit(_LIMIT)
)
_CANDIDATES = (
    sa.select(deliveries.c.id, deliveries.c.host)
    .where(deliveries.c.kind == sa.bindparam("kind", type_=sa.Text), _IS_DUE, _IS_FREE)
    .where(deliveries.c.host.not_in(sa.bindparam("full", expanding=True)))
    .order_by(deliveries.c.due_at, deliveries.c.id)
    .limit(MAX_CANDIDATES)
)
_PENDING = (
    sa.select(deliveries.c.due_at)
    .where(deliveries.c.state == sa.literal_column("'due'"), deliveries.c.kind == sa.bindparam("kind", type_=sa.Text))
    .order_by(deliveries.c.due_at)
    .limit(_LIMIT)
    .subquery()
)
_DEPTH = sa.select(sa.func.count(), sa.func.min(_PENDING.c.due_at))
_FREE = (
    sa.select(deliveries.c.id)
    .where(deliveries.c.id.in_(sa.bindparam("ids", expanding=True)), _IS_DUE, _IS_FREE)
    .with_for_update(skip_locked=True)
    .cte("free")
)
_LEASE_FREE = (
    sa.update(deliveries)
    .where(deliveries.c.id.in_(sa.select(_FREE.c.id)))
    .values(
        attempt=deliveries.c.attempt + 1,
        lease=sa.bindparam("new_lease", type_=sa.Text),
        lease_until=sa.bindparam("new_lease_until", type_=sa.BigInteger),
    )
    .returning(*EVERY_COLUMN)
)
_SETTLE = (
    sa.update(deliveries)
    .where(deliveries.c.id == _ID, deliveries.c.lease == sa.bindparam("old_lease", type_=sa.Text))
    .values(
        state=sa.bindparam("to", type_=sa.Text),
        attempt=deliveries.c.attempt - sa.bindparam("uncounted", type_=sa.Integer),
        due_at=sa.bindparam("new_due_at", type_=sa.BigInteger),
        done_at=sa.bindparam("new_done_at", type_=sa.BigInteger),
        lease=sa.null(),
        lease_until=sa.null(),
    )
)
_SETTLE_WITH_RESULT = _SETTLE.values(
    last_status=sa.bindparam("status", type_=sa.Integer), last_error=sa.bindparam("error", type_=sa.Text)
)
_RESEND = (
    sa.update(deliveries)
    .where(deliveries.c.id == _ID, _IS_FREE)
    .values(state="due", attempt=0, due_at=_NOW, done_at=sa.null(), lease=sa.null(), lease_until=sa.null())
    .returning(*EVERY_COLUMN)
)


def _within_limits(due: Sequence[Row[Any, Any]], limit: int, limit_per_host: int, busy: Mapping[str, int]) -> list[str]:
    """Return the ids of the first rows that fit under `limit` and, together with `busy`, `limit_per_host`."""
    used, ids = Counter(busy), list[str]()
    for row in due:
        if len(ids) < limit and used[row.host] < limit_per_host:
            used[row.host] += 1
            ids.append(row.id)
    return ids


def _read_depths(conn: sa.Connection, now: int, at_most: int) -> list[DeliveryDepth]:
    depths = list[DeliveryDepth]()
    for kind in get_args(DeliveryKind):
        number, due_at = conn.execute(_DEPTH, {"kind": kind, "limit": at_most}).one()
        if number:
            overdue = max(0.0, (now - due_at) / SECOND_US)
            depths.append(DeliveryDepth(kind=kind, pending=number, overdue_seconds=overdue))
    return depths


def _lease(tx: Tx, parameters: Mapping[str, Any]) -> list[Delivery]:
    """Lease those of the candidates that no other process has leased in the meantime, and return them."""
    rows = tx.conn.execute(_LEASE_FREE, {"now": tx.now} | dict(parameters)).all()
    return sorted(map(_delivery_of, rows), key=lambda delivery: delivery.due_at)


def _settle(tx: Tx, delivery_id: str, lease: str, outcome: DeliveryOutcome) -> bool:
    parameters = {
        "delivery": delivery_id,
        "old_lease": lease,
        "to": outcome.state,
        "uncounted": 0 if outcome.counts else 1,
        "new_due_at": tx.now + round(outcome.after_seconds * SECOND_US),
        "new_done_at": None if outcome.state == "due" else tx.now,
    }
    if outcome.counts:
        result = {"status": outcome.status, "error": outcome.error}
        return tx.conn.execute(_SETTLE_WITH_RESULT, parameters | result).rowcount == 1
    return tx.conn.execute(_SETTLE, parameters).rowcount == 1


def _resend_error(tx: Tx, delivery_id: str) -> NotFound | Stale:
    if tx.conn.execute(_BY_ID, {"delivery": delivery_id}).one_or_none() is None:
        return no_delivery(delivery_id)
    return Stale(f"The delivery {delivery_id} is being sent; try again when this attempt has ended.")


def _delivery_of(row: Row[Any]) -> Delivery:
    return Delivery(**dict(zip(_NAMES, row, strict=True)))
