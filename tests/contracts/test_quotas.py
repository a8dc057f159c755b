"""What every keeper of limits promises: exact across processes, whole or not at all, and nothing kept for the dead."""

from __future__ import annotations

import msgspec
import pytest

from signoff.core.limits import Denial, Limit, Reservation, ReservationRequest
from support.stores import AStore, listening, together, until

pytestmark = pytest.mark.anyio

HUNDRED = Limit(who="all", requests_per_minute=100, tokens_per_minute=10_000)


def a_wish(name: str, *limits: Limit, tokens: int = 0, lease_seconds: float = 60) -> ReservationRequest:
    wanted = tuple((limit.name, limit) for limit in limits)
    return ReservationRequest(id=name, limits=wanted, tokens=tokens, lease_seconds=lease_seconds)


async def reserved(store: AStore, name: str, *limits: Limit, tokens: int = 0, lease_seconds: float = 60) -> Reservation:
    room = await store.quotas.reserve(a_wish(name, *limits, tokens=tokens, lease_seconds=lease_seconds))
    assert isinstance(room, Reservation)
    return room


async def test_limits_are_put_listed_replaced_and_dropped(store: AStore, other: AStore) -> None:
    mine = Limit(who="user", id=7, email="ann@example.com", model="small", parallel=3)
    await store.quotas.put_limit(HUNDRED)
    await store.quotas.put_limit(mine)
    changed = msgspec.structs.replace(mine, parallel=4, cost_per_month=5)
    await store.quotas.put_limit(changed)
    assert await other.quotas.limits() == [HUNDRED, changed]
    assert await other.quotas.drop_limit(mine.name)
    assert not await other.quotas.drop_limit(mine.name)
    assert await store.quotas.limits() == [HUNDRED]


async def test_every_change_of_a_limit_is_counted_and_told(url: str, store: AStore) -> None:
    async with listening(url) as (_, ear):
        before = (await store.versions())["limits"]
        await store.quotas.put_limit(HUNDRED)
        await store.quotas.drop_limit(HUNDRED.name)
        await store.quotas.drop_limit(HUNDRED.name)
        assert (await store.versions())["limits"] == before + 2
        await ear.hears(("limits", ""), ("any", ""))


async def test_two_processes_together_admit_as_many_as_there_may_be_and_no_fewer(store: AStore, other: AStore) -> None:
    wishes = [a_wish(f"job-{number}", HUNDRED, tokens=1) for number in range(200)]
    answers = await together((store, other)[number % 2].quotas.reserve(wish) for number, wish in enumerate(wishes))
    assert sum(isinstance(answer, Reservation) for answer in answers) == 100
    waits = [answer.wait for answer in answers if isinstance(answer, Denial)]
    assert all(wait is not None and 0 < wait <= 60_000_000 for wait in waits)


async def test_tokens_are_counted_together_and_what_is_settled_is_free_for_all(store: AStore, other: AStore) -> None:
    rooms = await together(reserved(store, f"job-{number}", HUNDRED, tokens=1000) for number in range(10))
    assert isinstance(await other.quotas.reserve(a_wish("late", HUNDRED, tokens=1)), Denial)
    await together(other.quotas.settle(room, tokens=100) for room in rooms)
    await reserved(store, "whole", HUNDRED, tokens=9000)
    assert isinstance(await other.quotas.reserve(a_wish("later", HUNDRED, tokens=1)), Denial)


async def test_what_no_model_was_asked_for_is_given_back_whole(store: AStore, other: AStore) -> None:
    once = Limit(who="all", requests_per_minute=1, tokens_per_day=10)
    await other.quotas.settle(await reserved(store, "first", once, tokens=10), was_sent=False)
    await reserved(other, "second", once, tokens=10)


async def test_under_several_limits_there_is_room_or_nothing_is_taken(store: AStore) -> None:
    narrow, wide = Limit(who="token", id=3, parallel=1), Limit(who="all", requests_per_minute=3)
    await reserved(store, "first", narrow, wide)
    refusals = await together(store.quotas.reserve(a_wish(f"job-{number}", narrow, wide)) for number in range(5))
    assert all(isinstance(refusal, Denial) and refusal.limit == narrow for refusal in refusals)
    await reserved(store, "second", wide)
    await reserved(store, "third", wide)


async def test_a_slot_lapses_unless_it_is_renewed(store: AStore, other: AStore) -> None:
    two = Limit(who="all", parallel=2)
    dead, alive = await reserved(store, "dead", two, lease_seconds=60), await reserved(store, "alive", two)
    assert isinstance(await other.quotas.reserve(a_wish("none", two)), Denial)
    await store.quotas.renew([alive], 60)
    await store.quotas.renew([dead], 0.05)

    async def look() -> Reservation | None:
        found = await other.quotas.reserve(a_wish("next", two))
        return found if isinstance(found, Reservation) else None

    await until(look)
    meter = (await store.quotas.counters([two.name]))[two.name]
    assert {hold.id for hold in meter.pending} == {"alive", "next"}
    # when the one that was dead is heard of after all, it counts again
    await store.quotas.renew([dead], 60)
    meter = (await other.quotas.counters([two.name]))[two.name]
    assert {hold.id for hold in meter.pending} == {"alive", "next", "dead"}


async def test_meters_tell_what_counts_now(store: AStore, other: AStore) -> None:
    budget = Limit(who="all", requests_per_minute=5, tokens_per_month=100)
    await store.quotas.settle(await reserved(store, "job", budget, tokens=50), tokens=30)
    found = await other.quotas.counters([budget.name, "nobody"])
    assert list(found) == [budget.name]
    meter = found[budget.name]
    assert (meter.month.tokens, meter.day.tokens, meter.pending) == (30, 30, ())
    assert [(entry.requests, entry.tokens) for entry in meter.entries] == [(1, 30)]
