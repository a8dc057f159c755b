"""In-memory error budgets: their periods, passes and audits, and planted items."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from signoff.budgets import PassGrant, PassRequest
from signoff.core.job import Job
from signoff.core.reviews.answer_digest import Harmless, is_caught, is_wrong, mark_planted
from signoff.core.reviews.budget_group import MAX_GROUPS
from signoff.core.reviews.budget_period import BudgetPeriod, first_period, next_period
from signoff.core.reviews.copies import copy_for_reviewers, planted_copy
from signoff.core.reviews.planted import CatchCount, PlantedItem
from signoff.core.times import SECOND_US
from signoff.errors import PassLapsed
from signoff.infra.actor import current_actor
from signoff.store import TransitionRequest
from signoff.stores.audits import VERDICTS, audit_row, coin_in
from signoff.stores.budgets import groups_restart_change, planted_change, restart_change
from signoff.stores.schema import events, jobs
from signoff.stores.transitions import changes_of, copied_data, event_of
from simulation.tables import BudgetLease, Connection, Tables, Tx, record


class MemoryBudgets:
    """In-memory implementation of `budgets.Budgets`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def take_passes(self, request: PassRequest) -> PassGrant:
        def take(tx: Tx) -> PassGrant:
            policy, tables, counts = request.policy, self._tables, self._counts(request.policy)
            period = self._present_or_first(request, tx.now)
            if period is None:
                return PassGrant(period=None, number=0)
            self._return_lapsed(tx.now)
            period = self._counted(tables.budget_periods[policy][period.number - 1])
            if period.version < request.version and period.terms == request.terms:
                self._change(period, version=request.version)
            elif period.version < request.version:
                period = self._begin(period, next_period(period, request.version, request.terms, counts, tx.now))
            elif period.has_ended:
                period = self._begin(period, next_period(period, period.version, period.terms, counts, tx.now))
            number = min(request.most, period.passes)
            if number > 0:
                until = tx.now + round(request.seconds * SECOND_US)
                lease = BudgetLease(policy=policy, period=period.number, granted=number, until=until)
                tables.budget_leases[request.lease] = lease
            outstanding = period.outstanding + number
            return PassGrant(period=msgspec.structs.replace(period, outstanding=outstanding), number=number)

        return await self._connection.send(take, writes=True)

    def _present_or_first(self, request: PassRequest, now: int) -> BudgetPeriod | None:
        """Return the present period that passes are taken from, which may be the first one; None if there is none."""
        policy, newest = request.policy, self._newest(request.policy)
        if newest is not None and newest.terms.per != request.terms.per:
            if request.version <= newest.version:
                return None
            self._end_all(policy, now)
        period = self._present(policy, request.group, request.terms.per)
        if period is not None or (request.group is not None and len(self._groups(policy)) >= MAX_GROUPS):
            return period
        version, terms = request.version, request.terms
        if newest is not None and newest.version > version:
            version, terms = newest.version, newest.terms
        first = first_period(policy, version, terms, self._counts(policy), now)
        return self._add(msgspec.structs.replace(first, group=request.group))

    async def period(self, policy: str, group: str | None = None) -> BudgetPeriod | None:
        def read(_: Tx) -> BudgetPeriod | None:
            period = self._newest(policy) if group is None else self._present(policy, group, None)
            return None if period is None else self._counted(period)

        return await self._connection.send(read, writes=False)

    async def groups(self, policy: str, *, after: str | None = None, limit: int = 50) -> Sequence[BudgetPeriod]:
        def read(_: Tx) -> Sequence[BudgetPeriod]:
            names = [name for name in sorted(self._groups(policy)) if after is None or name > after][:limit]
            periods = [self._present(policy, name, None) for name in names]
            return [self._counted(period) for period in periods if period is not None]

        return await self._connection.send(read, writes=False)

    async def group_count(self, policy: str) -> int:
        return await self._connection.send(lambda _: len(self._groups(policy)), writes=False)

    async def restart(self, policy: str, group: str | None = None) -> BudgetPeriod | None:
        actor = current_actor()

        def restart(tx: Tx) -> BudgetPeriod | None:
            old = self._present(policy, group, None)
            if old is None:
                return None
            new = self._begin(old, next_period(old, old.version, old.terms, self._counts(policy), tx.now))
            record(self._tables, tx, actor, restart_change(old, new))
            return new

        return await self._connection.send(restart, writes=True)

    async def restart_groups(self, policy: str) -> int:
        actor = current_actor()

        def restart(tx: Tx) -> int:
            number = len(self._groups(policy))
            if number:
                self._end_all(policy, tx.now)
                record(self._tables, tx, actor, groups_restart_change(policy, number))
            return number

        return await self._connection.send(restart, writes=True)

    async def plant(self, item: PlantedItem) -> PlantedItem:
        actor = current_actor()

        def plant(tx: Tx) -> PlantedItem:
            stored = msgspec.structs.replace(item, id=max(self._tables.planted_items, default=0) + 1)
            self._tables.planted_items[stored.id] = 0, stored
            record(self._tables, tx, actor, planted_change("planted_item_added", stored.policy, stored.id))
            return stored

        return await self._connection.send(plant, writes=True)

    async def planted(self, policy: str, *, after_id: int = 0, limit: int = 50) -> Sequence[PlantedItem]:
        def read(_: Tx) -> Sequence[PlantedItem]:
            items = [item for _, item in self._tables.planted_items.values()]
            return [item for item in items if item.policy == policy and item.id > after_id][:limit]

        return await self._connection.send(read, writes=False)

    async def drop_planted(self, policy: str, item_id: int) -> bool:
        actor = current_actor()

        def drop(tx: Tx) -> bool:
            _, item = self._tables.planted_items.get(item_id, (0, None))
            if item is None or item.policy != policy:
                return False
            del self._tables.planted_items[item_id]
            record(self._tables, tx, actor, planted_change("planted_item_removed", policy, item_id))
            return True

        return await self._connection.send(drop, writes=True)

    async def present_planted(
        self, policy: str, like: Job, secret: str, *, actor: str, harmless: tuple[Harmless, ...] = ()
    ) -> Job | None:
        def present(tx: Tx) -> Job | None:
            items = self._tables.planted_items
            oldest = min((at, each.id) for at, each in items.values() if each.policy == policy) if items else None
            if oldest is None:
                return None
            _, item = items[oldest[1]]
            items[item.id] = tx.now, item
            job = planted_copy(item, like, secret, tx.now)
            self._tables.planted_jobs[job.id] = policy, mark_planted(item.response, harmless)
            add_copy(tx, job, actor)
            return job

        return await self._connection.send(present, writes=True)

    async def catch_counts(self, policy: str) -> Sequence[CatchCount]:
        return await self._connection.send(lambda _: self._counts(policy), writes=False)

    def _counts(self, policy: str) -> Sequence[CatchCount]:
        return [count for (name, _), count in sorted(self._tables.catch_counts.items()) if name == policy]

    def _return_lapsed(self, now: int) -> None:
        for lease_id, lease in list(self._tables.budget_leases.items()):
            if lease.until < now or lease.used >= lease.granted:
                del self._tables.budget_leases[lease_id]
                period = self._tables.budget_periods[lease.policy][lease.period - 1]
                self._change(period, delivered=period.delivered + lease.used)

    def _counted(self, period: BudgetPeriod) -> BudgetPeriod:
        leases = [
            lease
            for lease in self._tables.budget_leases.values()
            if (lease.policy, lease.period) == (period.policy, period.number)
        ]
        outstanding = sum(lease.granted - lease.used for lease in leases)
        delivered = period.delivered + sum(lease.used for lease in leases)
        return msgspec.structs.replace(period, outstanding=outstanding, delivered=delivered)

    def _groups(self, policy: str) -> dict[str, int]:
        return self._tables.budget_groups.setdefault(policy, {})

    def _newest(self, policy: str) -> BudgetPeriod | None:
        periods = self._tables.budget_periods.get(policy)
        return periods[-1] if periods else None

    def _present(self, policy: str, group: str | None, per: str | None) -> BudgetPeriod | None:
        if group is None:
            newest = self._newest(policy)
            return newest if newest is not None and newest.terms.per == per else None
        number = self._groups(policy).get(group)
        return None if number is None else self._tables.budget_periods[policy][number - 1]

    def _begin(self, period: BudgetPeriod, new: BudgetPeriod) -> BudgetPeriod:
        self._change(period, ended_at=new.started_at)
        return self._add(new)

    def _add(self, period: BudgetPeriod) -> BudgetPeriod:
        periods = self._tables.budget_periods.setdefault(period.policy, [])
        periods.append(msgspec.structs.replace(period, number=len(periods) + 1))
        if period.group is not None:
            self._groups(period.policy)[period.group] = len(periods)
        return periods[-1]

    def _end_all(self, policy: str, now: int) -> None:
        periods = self._tables.budget_periods[policy]
        for number in {len(periods), *self._groups(policy).values()}:
            if periods[number - 1].ended_at is None:
                self._change(periods[number - 1], ended_at=now)
        self._groups(policy).clear()

    def _change(self, period: BudgetPeriod, **values: object) -> None:
        change_period(self._tables, period.policy, period.number, **values)


def change_period(tables: Tables, policy: str, number: int, **values: object) -> None:
    """Set columns of a period."""
    periods = tables.budget_periods[policy]
    periods[number - 1] = msgspec.structs.replace(periods[number - 1], **values)


def add_copy(tx: Tx, copy: Job, actor: str) -> None:
    """Add a copy of a job for reviewers, with its first event."""
    tx.inserted.append((copy, "present"))
    tx.add(events, event_of(copy, "present", actor, copied_data(copy)))
    tx.add(jobs, msgspec.structs.asdict(copy))
    tx.changes.extend(changes_of(copy))


def check_pass(tables: Tables, request: TransitionRequest) -> None:
    """Raise PassLapsed if the lease of the pass that a `succeed` uses is gone."""
    coin = coin_in(request.changes)
    uses_pass = request.verb == "succeed" and coin is not None and coin.lease is not None
    if uses_pass and coin.lease not in tables.budget_leases:
        raise PassLapsed


def record_coin(tables: Tables, tx: Tx, job: Job, request: TransitionRequest) -> None:
    """Use the pass of an answer that leaves; give that of a held one back, and open its audit if its coin says so."""
    coin = coin_in(request.changes)
    if coin is None or coin.policy is None or coin.period is None:
        return
    lease = tables.budget_leases.get(coin.lease or "")
    if request.verb == "succeed" and lease is not None:
        lease.used += 1
    if request.verb != "hold":
        return
    if lease is not None:
        lease.granted -= 1
    if coin.is_audit:
        period = tables.budget_periods[coin.policy][coin.period - 1]
        counts = {"audits": period.audits + 1, "audits_open": period.audits_open + 1}
        change_period(tables, coin.policy, coin.period, **counts)
        tables.budget_audits.append(audit_row(job, coin, period.terms, tx.now) | {"is_wrong": None, "closed_at": None})


def record_verdict(tables: Tables, tx: Tx, job: Job, verb: str) -> Job | None:
    """Close the audit of `job` and count its planted item; return the copy that is to be presented."""
    audits = [row for row in tables.budget_audits if row["job_id"] == job.id and row["is_wrong"] is None]
    if verb in VERDICTS:
        for row in audits:
            period = tables.budget_periods[row["policy"]][row["period"] - 1]
            verdict = is_wrong(verb, job.response, row["digest"], period.terms.harmless)
            row |= {"is_wrong": verdict, "closed_at": tx.now, "digest": ""}
            counts = {"audits_open": period.audits_open - 1, "wrong": period.wrong + verdict}
            change_period(tables, row["policy"], row["period"], **counts)
        _count_planted(tables, tx, job, verb)
    if verb != "cancel":
        return None
    tables.planted_jobs.pop(job.id, None)
    if not audits:
        return None
    copy = copy_for_reviewers(job, tx.now)
    for row in audits:
        row["job_id"] = copy.id
    return copy


def close_unjudged(tables: Tables, tx: Tx, job_ids: Sequence[str]) -> None:
    """Close the audits of jobs that are erased, as wrong; forget their digests, and which of them were planted."""
    for row in tables.budget_audits:
        if row["job_id"] not in job_ids:
            continue
        if row["is_wrong"] is None:
            period = tables.budget_periods[row["policy"]][row["period"] - 1]
            counts = {"audits_open": period.audits_open - 1, "wrong": period.wrong + 1}
            change_period(tables, row["policy"], row["period"], **counts)
            row |= {"is_wrong": True, "closed_at": tx.now}
        row["digest"] = ""
    for job_id in job_ids:
        tables.planted_jobs.pop(job_id, None)


def _count_planted(tables: Tables, tx: Tx, job: Job, verb: str) -> None:
    if job.id not in tables.planted_jobs:
        return
    policy, mark = tables.planted_jobs.pop(job.id)
    stored = tables.decisions.get((job.id, job.round))
    decision = tx.decisions.get((job.id, job.round)) or (stored and stored[0])
    assert decision is not None
    none = CatchCount(reviewer=decision.reviewer, judged=0, caught=0)
    old = tables.catch_counts.get((policy, decision.reviewer), none)
    caught = tx.caught[job.id, job.round] = is_caught(verb, job.response, mark)
    new = msgspec.structs.replace(old, judged=old.judged + 1, caught=old.caught + caught)
    tables.catch_counts[policy, decision.reviewer] = new
