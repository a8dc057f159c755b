"""Contract tests of stores: limits hold across processes, and reservations are atomic and expire."""

from __future__ import annotations

import msgspec
import pytest

from signoff.core.limits import Denial, Limit, Reservation, ReservationRequest
from signoff.core.times import HOUR_US
from support.stores import AStore, listening, together, until

pytestmark = pytest.mark.anyio

HUNDRED = Limit(scope="all", requests_per_minute=100, tokens_per_minute=10_000)


def a_request(name: str, *limits: Limit, tokens: int = 0, lease_seconds: float = 60) -> ReservationRequest:
    named_limits = tuple((limit.name, limit) for limit in limits)
    return ReservationRequest(id=name, limits=named_limits, tokens=tokens, lease_seconds=lease_seconds)


async def reserved(store: AStore, name: str, *limits: Limit, tokens: int = 0, lease_seconds: float = 60) -> Reservation:
    reservation = await store.limits.reserve(a_request(name, *limits, tokens=tokens, lease_seconds=lease_seconds))
    assert isinstance(reservation, Reservation)
    return reservation


async def test_limits_are_put_listed_replaced_and_dropped(store: AStore, other: AStore) -> None:
    mine = Limit(scope="user", id=7, email="ann@example.com", model="small", parallel=3)
    await store.limits.put_limit(HUNDRED)
    await store.limits.put_limit(mine)
    changed = msgspec.structs.replace(mine, parallel=4, cost_per_month=5)
    await store.limits.put_limit(changed)
    assert await other.limits.all() == [HUNDRED, changed]
    assert await other.limits.drop_limit(mine.name)
    assert not await other.limits.drop_limit(mine.name)
    assert await store.limits.all() == [HUNDRED]


async def test_every_change_of_a_limit_is_counted_and_announced(url: str, store: AStore) -> None:
    async with listening(url) as (_, recorder):
        before = (await store.versions())["limits"]
        await store.limits.put_limit(HUNDRED)
        await store.limits.drop_limit(HUNDRED.name)
        await store.limits.drop_limit(HUNDRED.name)
        assert (await store.versions())["limits"] == before + 2
        await recorder.hears(("limits", ""), ("any", ""))


@pytest.mark.law
async def test_two_processes_together_admit_exactly_the_allowed_number(store: AStore, other: AStore) -> None:
    requests = [a_request(f"job-{number}", HUNDRED, tokens=1) for number in range(200)]
    outcomes = await together(
        (store, other)[number % 2].limits.reserve(request) for number, request in enumerate(requests)
    )
    assert sum(isinstance(outcome, Reservation) for outcome in outcomes) == 100
    waits = [outcome.wait_us for outcome in outcomes if isinstance(outcome, Denial)]
    assert all(wait is not None and 0 < wait <= 60_000_000 for wait in waits)


async def test_tokens_released_by_a_settlement_are_free_for_every_process(store: AStore, other: AStore) -> None:
    reservations = await together(reserved(store, f"job-{number}", HUNDRED, tokens=1000) for number in range(10))
    assert isinstance(await other.limits.reserve(a_request("late", HUNDRED, tokens=1)), Denial)
    await together(other.limits.settle(reservation, tokens=100) for reservation in reservations)
    await reserved(store, "whole", HUNDRED, tokens=9000)
    assert isinstance(await other.limits.reserve(a_request("later", HUNDRED, tokens=1)), Denial)


async def test_a_reservation_that_was_not_sent_is_released_in_full(store: AStore, other: AStore) -> None:
    once = Limit(scope="all", requests_per_minute=1, tokens_per_day=10)
    await other.limits.settle(await reserved(store, "first", once, tokens=10), was_sent=False)
    await reserved(other, "second", once, tokens=10)


async def test_a_reservation_under_several_limits_is_all_or_nothing(store: AStore) -> None:
    narrow, wide = Limit(scope="token", id=3, parallel=1), Limit(scope="all", requests_per_minute=3)
    await reserved(store, "first", narrow, wide)
    denials = await together(store.limits.reserve(a_request(f"job-{number}", narrow, wide)) for number in range(5))
    assert all(isinstance(denial, Denial) and denial.limit == narrow for denial in denials)
    await reserved(store, "second", wide)
    await reserved(store, "third", wide)


async def test_a_reservation_expires_unless_it_is_renewed(store: AStore, other: AStore) -> None:
    limit = Limit(scope="all", parallel=2)
    dead, alive = await reserved(store, "dead", limit, lease_seconds=60), await reserved(store, "alive", limit)
    assert isinstance(await other.limits.reserve(a_request("none", limit)), Denial)
    await store.limits.renew([alive], 60)
    await store.limits.renew([dead], 0.05)

    async def reserve_next() -> Reservation | None:
        outcome = await other.limits.reserve(a_request("next", limit))
        return outcome if isinstance(outcome, Reservation) else None

    await until(reserve_next)
    counter = (await store.limits.counters([limit.name]))[limit.name]
    assert {reservation.id for reservation in counter.pending} == {"alive", "next"}
    # when the expired reservation is renewed after all, then it counts again
    await store.limits.renew([dead], 60)
    counter = (await other.limits.counters([limit.name]))[limit.name]
    assert {reservation.id for reservation in counter.pending} == {"alive", "next", "dead"}


async def test_counters_report_current_usage(store: AStore, other: AStore) -> None:
    budget = Limit(scope="all", requests_per_minute=5, tokens_per_month=100)
    await store.limits.settle(await reserved(store, "job", budget, tokens=50), tokens=30)
    counters = await other.limits.counters([budget.name, "nobody"])
    assert list(counters) == [budget.name]
    counter = counters[budget.name]
    assert (counter.month.tokens, counter.day.tokens, counter.pending) == (30, 30, ())
    assert [(entry.requests, entry.tokens) for entry in counter.entries] == [(1, 30)]


async def test_refusals_are_counted_by_limit_kind_and_token_across_processes(store: AStore, other: AStore) -> None:
    user = await store.people.put_user("eager@example.com", "user")
    narrow = Limit(scope="all", requests_per_minute=1)
    for number, each in enumerate((store, store, other, other)):
        sent = ReservationRequest(
            id=f"job{number}", limits=((narrow.name, narrow),), user_id=user.id, token_id=5 + number % 2
        )
        await each.limits.reserve(sent)

    rows = await other.limits.refusals(0)
    counted = [(row.limit_name, row.kind, row.email, row.token_id, row.refused) for row in rows]
    assert counted == [("all", "requests", user.email, 6, 2), ("all", "requests", user.email, 5, 1)]
    assert await store.limits.refusals(rows[0].hour + HOUR_US) == []
    assert await store.limits.refusals(0, user_id=user.id + 1) == []
    assert await store.limits.refusals(0, limit=1) == rows[:1]
