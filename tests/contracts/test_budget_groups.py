"""Contract tests of stores: error budgets with a period for each group."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

import signoff.stores.budgets
import simulation.budgets
from contracts.test_budgets import FREE, TERMS, audited, decided, delivered, take
from signoff.core.audit import AuditFilter
from signoff.core.reviews.budget_group import MAX_GROUPS
from signoff.core.reviews.budget_period import BudgetPeriod
from support.stores import AStore

pytestmark = pytest.mark.anyio
PER_USER = msgspec.structs.replace(TERMS, per="user")


async def present(store: AStore, group: str) -> BudgetPeriod:
    period = await store.budgets.period("p", group)
    assert period is not None
    return period


def names(periods: Sequence[BudgetPeriod]) -> list[str | None]:
    return [period.group for period in periods]


async def test_each_group_has_a_gate_and_counts_of_its_own(store: AStore) -> None:
    grants = {group: await take(store, FREE, terms=PER_USER, group=group) for group in ("1", "2")}
    assert [grant.number for grant, _ in grants.values()] == [FREE, FREE]
    assert {grant.period and grant.period.number for grant, _ in grants.values()} == {1, 2}
    assert (await take(store, terms=PER_USER, group="1"))[0].number == 0
    await delivered(store, grants["1"][1])
    job = await audited(store, grants["2"][1], period=2)
    one, two = await present(store, "1"), await present(store, "2")
    assert (one.delivered, one.audits_open, one.outstanding) == (1, 0, FREE - 1)
    assert (two.delivered, two.audits_open, two.outstanding) == (0, 1, FREE - 1)
    await decided(store, job, "reject")
    assert ((await present(store, "1")).wrong, (await present(store, "2")).wrong) == (0, 1)


@pytest.mark.law
async def test_two_processes_together_never_take_more_than_the_budget_of_a_group_has(
    store: AStore, other: AStore
) -> None:
    async def taken(group: str) -> int:
        grants = await asyncio.gather(*(take(each, 4, terms=PER_USER, group=group) for each in (store, other) * 10))
        assert len({grant.period and grant.period.number for grant, _ in grants}) == 1
        return sum(grant.number for grant, _ in grants)

    assert await asyncio.gather(*map(taken, ("1", "2", "3"))) == [FREE] * 3
    assert await store.budgets.group_count("p") == 3


async def test_groups_are_listed_in_pages_by_name(store: AStore) -> None:
    assert list(await store.budgets.groups("p")) == []
    for group in ("b", "", "a", "c"):
        await take(store, terms=PER_USER, group=group)
    await take(store, policy="q", terms=PER_USER, group="d")
    assert names(await store.budgets.groups("p", limit=3)) == ["", "a", "b"]
    assert names(await store.budgets.groups("p", after="b")) == ["c"]
    assert names(await store.budgets.groups("p", after="")) == ["a", "b", "c"]
    assert (await present(store, "b")).outstanding == 1
    assert await store.budgets.period("p", "d") is None


@pytest.mark.parametrize("most", [50, pytest.param(MAX_GROUPS, marks=pytest.mark.long)])
async def test_a_group_beyond_the_largest_number_gets_no_budget(
    store: AStore, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (signoff.stores.budgets, simulation.budgets):
        monkeypatch.setattr(module, "MAX_GROUPS", most)
    for start in range(0, most, 50):
        numbers = range(start, start + 50)
        grants = await asyncio.gather(*(take(store, terms=PER_USER, group=f"{number}") for number in numbers))
        assert {grant.number for grant, _ in grants} == {1}
    grant, _ = await take(store, terms=PER_USER, group="new")
    assert (grant.period, grant.number) == (None, 0)
    assert (await take(store, terms=PER_USER, group="7"))[0].number == 1
    assert await store.budgets.restart_groups("p") == most
    assert (await take(store, terms=PER_USER, group="new"))[0].number == 1


async def test_other_kinds_of_groups_end_all_periods_and_older_versions_get_no_passes(store: AStore) -> None:
    await take(store, version=1)
    await take(store, version=2, terms=PER_USER, group="1")
    assert (await take(store, version=1))[0].number == 0
    _, lease = await take(store, 2, version=2, terms=PER_USER, group="2")
    by_team = msgspec.structs.replace(TERMS, per="metadata.team")
    grant, _ = await take(store, version=3, terms=by_team, group="1")
    assert grant.period is not None
    assert (grant.number, grant.period.number, grant.period.delivered) == (1, 4, 0)
    assert names(await store.budgets.groups("p")) == ["1"]
    for old in ({"version": 2, "terms": PER_USER, "group": "2"}, {"version": 1}):
        assert (await take(store, **old))[0].number == 0
    # what had been taken before counts in its own period
    await delivered(store, lease)
    await take(store, version=3, terms=by_team, group="1")
    assert (await present(store, "1")).delivered == 0
    back, _ = await take(store, version=4, terms=TERMS)
    assert back.period is not None
    assert (back.number, back.period.number, back.period.group) == (1, 5, None)


async def test_a_new_group_of_an_old_version_gets_the_newest_terms(store: AStore) -> None:
    wider = msgspec.structs.replace(PER_USER, share=0.06)
    await take(store, version=1, terms=PER_USER, group="1")
    await take(store, version=2, terms=wider, group="1")
    grant, _ = await take(store, version=1, terms=PER_USER, group="2")
    assert grant.period is not None
    assert (grant.period.terms, grant.period.version) == (wider, 2)


async def test_a_restart_is_of_one_group_or_of_all(store: AStore) -> None:
    for group in ("1", "2"):
        _, lease = await take(store, terms=PER_USER, group=group)
        await delivered(store, lease)
    assert await store.budgets.restart("p", "3") is None
    assert await store.budgets.restart("p") is None
    new = await store.budgets.restart("p", "1")
    assert new is not None
    assert (new.group, new.number, new.delivered) == ("1", 3, 0)
    assert ((await present(store, "1")).delivered, (await present(store, "2")).delivered) == (0, 1)
    assert await store.budgets.restart_groups("p") == 2
    assert await store.budgets.restart_groups("p") == 0
    assert await store.budgets.period("p", "2") is None
    grant, _ = await take(store, terms=PER_USER, group="2")
    assert grant.period is not None
    assert (grant.period.number, grant.period.delivered) == (4, 0)
    entries = await store.audit.page(AuditFilter(action="budget_restarted"))
    assert [(entry.before, entry.after) for entry in entries] == [
        ({"groups": 2}, {"groups": 0}),
        ({"group": "1", "period": 1}, {"group": "1", "period": 3}),
    ]
