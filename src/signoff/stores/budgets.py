"""Error budgets, in SQL: periods, and the passes that processes take."""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from signoff.budgets import PassGrant, PassRequest
from signoff.core.audit import Actor, AuditChange
from signoff.core.job import Job
from signoff.core.reviews.answer_digest import Harmless, mark_planted
from signoff.core.reviews.budget_group import MAX_GROUPS
from signoff.core.reviews.budget_period import BudgetPeriod, BudgetTerms, first_period, next_period
from signoff.core.reviews.copies import planted_copy
from signoff.core.reviews.planted import CatchCount, PlantedItem
from signoff.core.times import SECOND_US
from signoff.infra.actor import current_actor
from signoff.stores.audit import record
from signoff.stores.budgets_schema import (
    budget_groups,
    budget_leases,
    budget_periods,
    budgets,
    catch_counts,
    planted_items,
    planted_jobs,
)
from signoff.stores.database import Database
from signoff.stores.statements import insert_into
from signoff.stores.transaction import Tx
from signoff.stores.transitions import add_copy

# Maximum number of leases that a transaction which takes passes also deletes, so that it stays short.
MAX_RETURNED_LEASES = 500
_NOTHING = PassGrant(period=None, number=0)
_STORED = [column.name for column in budget_periods.c]


class SqlBudgets:
    """Error budgets in a SQL database; see `budgets.Budgets`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take_passes(self, request: PassRequest) -> PassGrant:
        """See `budgets.Budgets`."""
        return await self._database.write_alone(lambda tx: _take(tx, request))

    async def period(self, policy: str, group: str | None = None) -> BudgetPeriod | None:
        """See `budgets.Budgets`."""
        return await self._database.read(lambda conn, _: _read_period(conn, policy, group))

    async def groups(self, policy: str, *, after: str | None = None, limit: int = 50) -> Sequence[BudgetPeriod]:
        """See `budgets.Budgets`."""
        query = sa.select(budget_groups.c.period).where(budget_groups.c.policy == policy)
        query = query.order_by(budget_groups.c.group).limit(limit)
        query = query if after is None else query.where(budget_groups.c.group > after)

        def read(conn: Connection, _: object) -> list[BudgetPeriod]:
            periods = [_period_of(conn, policy, number) for number in conn.execute(query).scalars().all()]
            return [_read_counted(conn, period, *_passes_of(conn, period)) for period in periods]

        return await self._database.read(read)

    async def group_count(self, policy: str) -> int:
        """See `budgets.Budgets`."""
        return await self._database.read(lambda conn, _: _count_groups(conn, policy))

    async def restart(self, policy: str, group: str | None = None) -> BudgetPeriod | None:
        """See `budgets.Budgets`."""
        actor = current_actor()
        return await self._database.write(lambda tx: _restart(tx, policy, group, actor))

    async def restart_groups(self, policy: str) -> int:
        """See `budgets.Budgets`."""
        actor = current_actor()
        return await self._database.write(lambda tx: _restart_groups(tx, policy, actor))

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

    async def present_planted(
        self, policy: str, like: Job, secret: str, *, actor: str, harmless: tuple[Harmless, ...] = ()
    ) -> Job | None:
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
            job = planted_copy(item, like, secret, tx.now)
            mark = {"job_id": job.id, "policy": policy, "digest": mark_planted(item.response, harmless)}
            tx.conn.execute(sa.insert(planted_jobs), mark)
            add_copy(tx, job, actor)
            return job

        return await self._database.write(present)

    async def catch_counts(self, policy: str) -> Sequence[CatchCount]:
        """See `budgets.Budgets`."""
        return await self._database.read(lambda conn, _: _read_counts(conn, policy))


def _take(tx: Tx, request: PassRequest) -> PassGrant:
    insert = insert_into(budgets, tx.conn.dialect.name).on_conflict_do_nothing()
    tx.conn.execute(insert, {"policy": request.policy, "period": 0})  # so that there is a row to lock
    newest = _lock_newest(tx, request.policy)
    if newest is not None and newest.terms.per != request.terms.per:
        if request.version <= newest.version:
            return _NOTHING
        _end_all(tx, newest)
    number = _present_number(tx.conn, request.policy, request.group, newest, request.terms.per)
    if number is None and request.group is not None and _count_groups(tx.conn, request.policy) >= MAX_GROUPS:
        return _NOTHING
    period = _begin_first(tx, request, newest) if number is None else _period_of(tx.conn, request.policy, number)
    outstanding, used = _return_lapsed(tx, period)
    period = _read_counted(tx.conn, period, outstanding, used)
    if period.version < request.version:
        if period.terms == request.terms:
            tx.conn.execute(_update(period, version=request.version))
        else:
            period, outstanding = _begin(tx, period, request.version, request.terms), 0
    elif period.has_ended:
        period, outstanding = _begin(tx, period, period.version, period.terms), 0
    passes = min(request.most, period.passes)
    if passes > 0:
        row = {"id": request.lease, "policy": request.policy, "period": period.number, "granted": passes, "used": 0}
        tx.conn.execute(sa.insert(budget_leases), row | {"until": tx.now + round(request.seconds * SECOND_US)})
    return PassGrant(period=msgspec.structs.replace(period, outstanding=outstanding + passes), number=passes)


def _lock_newest(tx: Tx, policy: str) -> BudgetPeriod | None:
    """Lock the budget, and return the newest period of the policy, without counts; None if it has had none."""
    number = tx.conn.execute(_LOCK, {"of_policy": policy}).scalar_one_or_none()
    return _period_of(tx.conn, policy, number) if number else None


def _present_number(
    conn: Connection, policy: str, group: str | None, newest: BudgetPeriod | None, per: str | None
) -> int | None:
    """Return the number of the present period of a group, or of the budget for all; None if it has none."""
    if group is not None:
        of_group = (budget_groups.c.policy == policy) & (budget_groups.c.group == group)
        return conn.execute(sa.select(budget_groups.c.period).where(of_group)).scalar_one_or_none()
    return newest.number if newest is not None and newest.terms.per == per else None


def _count_groups(conn: Connection, policy: str) -> int:
    query = sa.select(sa.func.count()).select_from(budget_groups).where(budget_groups.c.policy == policy)
    return conn.execute(query).scalar_one()


def _begin_first(tx: Tx, request: PassRequest, newest: BudgetPeriod | None) -> BudgetPeriod:
    """Begin the first period of a group, or of a budget for all; under the newest terms if those asked for are old."""
    version, terms = request.version, request.terms
    if newest is not None and newest.version > version:
        version, terms = newest.version, newest.terms
    first = first_period(request.policy, version, terms, _read_counts(tx.conn, request.policy), tx.now)
    return _add(tx, msgspec.structs.replace(first, group=request.group))


def _add(tx: Tx, period: BudgetPeriod) -> BudgetPeriod:
    """Store a period with the next number, as the present one of its group; return it. The budget is locked."""
    of_policy = budgets.c.policy == period.policy
    number = sa.update(budgets).where(of_policy).values(period=budgets.c.period + 1).returning(budgets.c.period)
    period = msgspec.structs.replace(period, number=tx.conn.execute(number).scalar_one())
    tx.conn.execute(sa.insert(budget_periods), {name: getattr(period, name) for name in _STORED})
    if period.group is not None:
        row = {"policy": period.policy, "group": period.group, "period": period.number}
        insert = insert_into(budget_groups, tx.conn.dialect.name).values(row)
        changes = {"period": insert.excluded.period}
        tx.conn.execute(insert.on_conflict_do_update(index_elements=["policy", "group"], set_=changes))
    return period


def _return_lapsed(tx: Tx, period: BudgetPeriod) -> tuple[int, int]:
    """Delete leases that are used up or have lapsed, and add their used passes to their periods.

    Return the unused and the used passes of the other leases of `period`. A lease that a transition uses at this moment
    is locked, and left alone.
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
    """Return the numbers of unused and of used passes of the leases of the period."""
    of_period = (budget_leases.c.policy == period.policy) & (budget_leases.c.period == period.number)
    granted, used = (sa.func.coalesce(sa.func.sum(budget_leases.c[name]), 0) for name in ("granted", "used"))
    row = conn.execute(sa.select(granted.label("granted"), used.label("used")).where(of_period)).one()
    return int(row.granted) - int(row.used), int(row.used)


def _read_counted(conn: Connection, period: BudgetPeriod, outstanding: int, used: int) -> BudgetPeriod:
    """Return the period as it is now. Read it after its leases: a pass that becomes an audit meanwhile counts twice."""
    now = _period_of(conn, period.policy, period.number)
    return msgspec.structs.replace(now, outstanding=outstanding, delivered=now.delivered + used)


def _begin(tx: Tx, period: BudgetPeriod, version: int, terms: BudgetTerms) -> BudgetPeriod:
    """End `period`, and return the one that follows it. The budget is locked."""
    tx.conn.execute(_update(period, ended_at=tx.now))
    return _add(tx, next_period(period, version, terms, _read_counts(tx.conn, period.policy), tx.now))


def _end_all(tx: Tx, newest: BudgetPeriod) -> int:
    """End the present periods of a policy, of all its groups, and return their number. The budget is locked."""
    of_groups = budget_groups.c.policy == newest.policy
    numbers = sa.select(budget_groups.c.period).where(of_groups)
    is_present = budget_periods.c.number.in_(numbers) | (budget_periods.c.number == newest.number)
    of_policy = (budget_periods.c.policy == newest.policy) & budget_periods.c.ended_at.is_(None) & is_present
    tx.conn.execute(sa.update(budget_periods).where(of_policy).values(ended_at=tx.now))
    return tx.conn.execute(sa.delete(budget_groups).where(of_groups)).rowcount


def _restart(tx: Tx, policy: str, group: str | None, actor: Actor) -> BudgetPeriod | None:
    newest = _lock_newest(tx, policy)
    number = _present_number(tx.conn, policy, group, newest, None)
    if number is None:
        return None
    period = _period_of(tx.conn, policy, number)
    new = _begin(tx, period, period.version, period.terms)
    record(tx, actor, restart_change(period, new))
    return new


def _restart_groups(tx: Tx, policy: str, actor: Actor) -> int:
    newest = _lock_newest(tx, policy)
    number = 0 if newest is None else _end_all(tx, newest)
    if number:
        record(tx, actor, groups_restart_change(policy, number))
    return number


def restart_change(old: BudgetPeriod, new: BudgetPeriod) -> AuditChange:
    """Return the entry of the audit log for a period that an admin has begun."""
    group = {} if old.group is None else {"group": old.group}
    before, after = (group | {"period": each.number} for each in (old, new))
    return AuditChange(action="budget_restarted", subject=f"policy:{old.policy}", before=before, after=after)


def groups_restart_change(policy: str, number: int) -> AuditChange:
    """Return the entry of the audit log for the end of the present periods of all groups; `number` is their number."""
    before, after = {"groups": number}, {"groups": 0}
    return AuditChange(action="budget_restarted", subject=f"policy:{policy}", before=before, after=after)


def planted_change(action: str, policy: str, item_id: int) -> AuditChange:
    """Return the entry of the audit log for a planted item, without its texts."""
    return AuditChange(action=action, subject=f"policy:{policy}", after={"planted_item": item_id})


def _read_period(conn: Connection, policy: str, group: str | None) -> BudgetPeriod | None:
    if group is None:
        query = sa.select(budgets.c.period).where(budgets.c.policy == policy)
        number = conn.execute(query).scalar_one_or_none()
    else:
        number = _present_number(conn, policy, group, None, None)
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


def _update(period: BudgetPeriod, **values: Any) -> sa.Update:
    of_period = (budget_periods.c.policy == period.policy) & (budget_periods.c.number == period.number)
    return sa.update(budget_periods).where(of_period).values(**values)


_ITEM = [column for column in planted_items.c if column.name != "presented_at"]
_LOCK = (
    sa.select(budgets.c.period).where(budgets.c.policy == sa.bindparam("of_policy", type_=sa.Text)).with_for_update()
)
