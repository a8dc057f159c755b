"""Error budgets, in SQL: periods, and the passes that processes take."""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from signoff.budgets import PassGrant, PassRequest
from signoff.core.audit import Actor, AuditChange
from signoff.core.job import Job
from signoff.core.reviews.answer_digest import digest_answer
from signoff.core.reviews.budget_period import BudgetPeriod, first_period, next_period
from signoff.core.reviews.copies import planted_copy
from signoff.core.reviews.planted import CatchCount, PlantedItem
from signoff.infra.actor import current_actor
from signoff.stores.audit import record
from signoff.stores.budgets_schema import (
    budget_leases,
    budget_periods,
    budgets,
    catch_counts,
    planted_items,
    planted_jobs,
)
from signoff.stores.database import Database
from signoff.stores.statements import insert_into
from signoff.stores.transitions import SECOND, add_copy
from signoff.stores.writer import Tx

# A transaction that takes passes deletes no more leases, so that it stays short.
MAX_RETURNED_LEASES = 500
_STORED = [column.name for column in budget_periods.c]


class SqlBudgets:
    """Error budgets in a SQL database; see `budgets.Budgets`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take_passes(self, request: PassRequest) -> PassGrant:
        """See `budgets.Budgets`."""
        return await self._database.write_alone(lambda tx: _take(tx, request))

    async def period(self, policy: str) -> BudgetPeriod | None:
        """See `budgets.Budgets`."""
        return await self._database.read(lambda conn, _: _read_period(conn, policy))

    async def restart(self, policy: str) -> BudgetPeriod | None:
        """See `budgets.Budgets`."""
        actor = current_actor()
        return await self._database.write(lambda tx: _restart(tx, policy, actor))

    async def plant(self, item: PlantedItem) -> PlantedItem:
        """See `budgets.Budgets`."""
        actor = current_actor()

        def plant(tx: Tx) -> PlantedItem:
            values = {"policy": item.policy, "path": item.path, "body": item.body, "response": item.response}
            insert = sa.insert(planted_items).values(**values, presented_at=0).returning(planted_items.c.id)
            stored = msgspec.structs.replace(item, id=tx.conn.execute(insert).scalar_one())
            record(tx, actor, planted_change("planted_item_added", stored.policy, stored.id))
            return stored

        return await self._database.write(plant)

    async def planted(self, policy: str, *, after_id: int = 0, limit: int = 50) -> Sequence[PlantedItem]:
        """See `budgets.Budgets`."""
        query = sa.select(*_ITEM).where(planted_items.c.policy == policy, planted_items.c.id > after_id)
        query = query.order_by(planted_items.c.id).limit(limit)
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [PlantedItem(**row) for row in rows]

    async def drop_planted(self, policy: str, item_id: int) -> bool:
        """See `budgets.Budgets`."""
        actor = current_actor()
        delete = sa.delete(planted_items).where(planted_items.c.id == item_id, planted_items.c.policy == policy)

        def drop(tx: Tx) -> bool:
            if tx.conn.execute(delete).rowcount == 0:
                return False
            record(tx, actor, planted_change("planted_item_removed", policy, item_id))
            return True

        return await self._database.write(drop)

    async def present_planted(self, policy: str, like: Job, job_id: str, *, actor: str) -> Job | None:
        """See `budgets.Budgets`."""
        oldest = (
            sa.select(*_ITEM)
            .where(planted_items.c.policy == policy)
            .order_by(planted_items.c.presented_at, planted_items.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )

        def present(tx: Tx) -> Job | None:
            row = tx.conn.execute(oldest).mappings().one_or_none()
            if row is None:
                return None
            item = PlantedItem(**row)
            update = sa.update(planted_items).where(planted_items.c.id == item.id)
            tx.conn.execute(update.values(presented_at=tx.now))
            mark = {"job_id": job_id, "policy": policy, "digest": digest_answer(item.response)}
            tx.conn.execute(sa.insert(planted_jobs), mark)
            job = planted_copy(item, like, job_id, tx.now)
            add_copy(tx, job, actor)
            return job

        return await self._database.write(present)

    async def catch_counts(self, policy: str) -> Sequence[CatchCount]:
        """See `budgets.Budgets`."""
        return await self._database.read(lambda conn, _: _read_counts(conn, policy))


def _take(tx: Tx, request: PassRequest) -> PassGrant:
    period = _lock_period(tx, request)
    outstanding, used = _return_lapsed(tx, period)
    period = _read_counted(tx.conn, period, outstanding, used)
    if period.version < request.version:
        if period.terms == request.terms:
            tx.conn.execute(_update(period, version=request.version))
        else:
            period, outstanding = _begin(tx, period, request.version, request.terms), 0
    elif period.has_ended:
        period, outstanding = _begin(tx, period, period.version, period.terms), 0
    number = min(request.most, period.passes)
    if number > 0:
        row = {"id": request.lease, "policy": request.policy, "period": period.number, "granted": number, "used": 0}
        tx.conn.execute(sa.insert(budget_leases), row | {"until": tx.now + round(request.seconds * SECOND)})
    return PassGrant(period=msgspec.structs.replace(period, outstanding=outstanding + number), number=number)


def _lock_period(tx: Tx, request: PassRequest) -> BudgetPeriod:
    """Lock the budget, and return its present period, without counts; begin the first one if there is none."""
    row = {"policy": request.policy, "period": 1}
    insert = insert_into(budgets, tx.conn.dialect.name).on_conflict_do_nothing()
    if tx.conn.execute(insert, row).rowcount == 1:
        counts = _read_counts(tx.conn, request.policy)
        first = first_period(request.policy, request.version, request.terms, counts, tx.now)
        tx.conn.execute(sa.insert(budget_periods), _row_of(first))
    number = tx.conn.execute(_LOCK, {"of_policy": request.policy}).scalar_one()
    return _period_of(tx.conn, request.policy, number)


def _return_lapsed(tx: Tx, period: BudgetPeriod) -> tuple[int, int]:
    """Count leases that are used up or have lapsed; return the passes of the others that are not used, and are.

    A lease that a transition uses at this moment is locked, and left alone.
    """
    is_over = (budget_leases.c.until < tx.now) | (budget_leases.c.used >= budget_leases.c.granted)
    of_policy = budget_leases.c.policy == period.policy
    over = sa.select(budget_leases.c.id).where(of_policy, is_over).limit(MAX_RETURNED_LEASES)
    ids = tx.conn.execute(over.with_for_update(skip_locked=True)).scalars().all()
    if ids:
        delete = sa.delete(budget_leases).where(budget_leases.c.id.in_(ids))
        used_by_period = dict[int, int]()
        for row in tx.conn.execute(delete.returning(budget_leases.c.period, budget_leases.c.used)):
            used_by_period[row.period] = used_by_period.get(row.period, 0) + row.used
        for number, used in sorted(used_by_period.items()):
            of_period = (budget_periods.c.policy == period.policy) & (budget_periods.c.number == number)
            more = budget_periods.c.delivered + used
            tx.conn.execute(sa.update(budget_periods).where(of_period).values(delivered=more))
    return _passes_of(tx.conn, period)


def _passes_of(conn: Connection, period: BudgetPeriod) -> tuple[int, int]:
    """Return the passes of the leases of the period that are not used, and those that are."""
    of_period = (budget_leases.c.policy == period.policy) & (budget_leases.c.period == period.number)
    granted, used = (sa.func.coalesce(sa.func.sum(budget_leases.c[name]), 0) for name in ("granted", "used"))
    row = conn.execute(sa.select(granted.label("granted"), used.label("used")).where(of_period)).one()
    return int(row.granted) - int(row.used), int(row.used)


def _read_counted(conn: Connection, period: BudgetPeriod, outstanding: int, used: int) -> BudgetPeriod:
    """Return the period as it is now. Read it after its leases: a pass that becomes an audit meanwhile counts twice."""
    now = _period_of(conn, period.policy, period.number)
    return msgspec.structs.replace(now, outstanding=outstanding, delivered=now.delivered + used)


def _begin(tx: Tx, period: BudgetPeriod, version: int, terms: Any) -> BudgetPeriod:
    """End `period`, and return the one that follows it. The budget is locked."""
    new = next_period(period, version, terms, _read_counts(tx.conn, period.policy), tx.now)
    tx.conn.execute(_update(period, ended_at=tx.now))
    tx.conn.execute(sa.insert(budget_periods), _row_of(new))
    tx.conn.execute(sa.update(budgets).where(budgets.c.policy == period.policy).values(period=new.number))
    return new


def _restart(tx: Tx, policy: str, actor: Actor) -> BudgetPeriod | None:
    number = tx.conn.execute(_LOCK, {"of_policy": policy}).scalar_one_or_none()
    if number is None:
        return None
    period = _period_of(tx.conn, policy, number)
    new = _begin(tx, period, period.version, period.terms)
    record(tx, actor, restart_change(period, new))
    return new


def restart_change(old: BudgetPeriod, new: BudgetPeriod) -> AuditChange:
    """Return the entry of the audit log for a period that an admin has begun."""
    before, after = ({"period": each.number} for each in (old, new))
    return AuditChange(action="budget_restarted", subject=f"policy:{old.policy}", before=before, after=after)


def planted_change(action: str, policy: str, item_id: int) -> AuditChange:
    """Return the entry of the audit log for a planted item, without its texts."""
    return AuditChange(action=action, subject=f"policy:{policy}", after={"planted_item": item_id})


def _read_period(conn: Connection, policy: str) -> BudgetPeriod | None:
    number = conn.execute(sa.select(budgets.c.period).where(budgets.c.policy == policy)).scalar_one_or_none()
    if number is None:
        return None
    period = _period_of(conn, policy, number)
    return _read_counted(conn, period, *_passes_of(conn, period))


def _period_of(conn: Connection, policy: str, number: int) -> BudgetPeriod:
    query = sa.select(*budget_periods.c).where(budget_periods.c.policy == policy, budget_periods.c.number == number)
    return BudgetPeriod(**conn.execute(query).mappings().one())


def _read_counts(conn: Connection, policy: str) -> list[CatchCount]:
    columns = (catch_counts.c.reviewer, catch_counts.c.judged, catch_counts.c.caught)
    query = sa.select(*columns).where(catch_counts.c.policy == policy).order_by(catch_counts.c.reviewer)
    return [CatchCount(**row) for row in conn.execute(query).mappings()]


def _row_of(period: BudgetPeriod) -> dict[str, Any]:
    return {name: getattr(period, name) for name in _STORED}


def _update(period: BudgetPeriod, **values: Any) -> sa.Update:
    of_period = (budget_periods.c.policy == period.policy) & (budget_periods.c.number == period.number)
    return sa.update(budget_periods).where(of_period).values(**values)


_ITEM = [column for column in planted_items.c if column.name != "presented_at"]
_LOCK = (
    sa.select(budgets.c.period).where(budgets.c.policy == sa.bindparam("of_policy", type_=sa.Text)).with_for_update()
)
