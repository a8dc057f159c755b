"""The rules of limits, whatever keeps them: never more than there may be, never refused where there is room."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.estimate import DEFAULT_OUTPUT_TOKENS, estimate_tokens
from signoff.core.limits import (
    MAX_ENTRIES,
    MINUTE,
    SECOND,
    SLOT,
    Counter,
    Denial,
    Limit,
    Reservation,
    ReservationRequest,
    expire,
    renew_reservations,
    settle_reservation,
    try_reserve,
)

NOON = int(datetime(2026, 2, 27, 12, tzinfo=UTC).timestamp()) * SECOND
DAY = 24 * 60 * MINUTE


class LimitHarness:
    """One meter, and everything that was ever admitted by it."""

    def __init__(self, **numbers: int) -> None:
        self.limit = Limit(who="all", **numbers)  # type: ignore[arg-type]
        self.meters: Mapping[str, Counter] = {}
        self.now = NOON
        self.rooms: list[Reservation] = []
        self._number = 0

    @property
    def meter(self) -> Counter:
        return expire(self.meters.get("all", Counter()), self.now)

    def ask(self, tokens: int = 0, cost: int = 0, lease_seconds: float = 15) -> Reservation | Denial:
        self._number += 1
        wish = ReservationRequest(
            id=f"job-{self._number}",
            limits=(("all", self.limit),),
            tokens=tokens,
            cost=cost,
            lease_seconds=lease_seconds,
        )
        after, found = try_reserve(self.meters, wish, self.now)
        self.meters = {**self.meters, **after}
        if isinstance(found, Reservation):
            self.rooms.append(found)
        return found

    def settle(self, room: Reservation | Denial, tokens: int = 0, cost: int = 0, *, was_sent: bool = True) -> None:
        assert isinstance(room, Reservation)
        self.meters = settle_reservation(self.meters, room, tokens=tokens, cost=cost, was_sent=was_sent, now=self.now)

    def pass_by(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


def wait_of(refusal: Reservation | Denial) -> int | None:
    assert isinstance(refusal, Denial)
    return refusal.wait


waits = st.lists(st.integers(0, 40 * SECOND), min_size=1, max_size=60)


@given(waits, st.integers(1, 8))
def test_no_minute_sees_more_requests_than_there_may_be_and_none_is_refused_that_fits(
    steps: list[int], most: int
) -> None:
    counter, admitted_at = LimitHarness(requests_per_minute=most), list[int]()
    for step in steps:
        counter.now += step
        in_the_last_minute = sum(at > counter.now - MINUTE for at in admitted_at)
        is_admitted = isinstance(counter.ask(), Reservation)
        assert is_admitted == (in_the_last_minute < most)
        if is_admitted:
            admitted_at.append(counter.now)


@given(st.lists(st.tuples(st.integers(0, 40 * SECOND), st.integers(1, 60)), min_size=1, max_size=60))
def test_no_minute_sees_more_tokens_than_there_may_be_and_none_is_refused_that_fits(
    asked: list[tuple[int, int]],
) -> None:
    counter, admitted_at = LimitHarness(tokens_per_minute=100), list[tuple[int, int]]()
    for step, tokens in asked:
        counter.now += step
        used = sum(count for at, count in admitted_at if at > counter.now - MINUTE)
        is_admitted = isinstance(counter.ask(tokens), Reservation)
        assert is_admitted == (used + tokens <= 100)
        if is_admitted:
            admitted_at.append((counter.now, tokens))


@given(
    st.lists(st.tuples(st.integers(0, 20 * SECOND), st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=40),
    st.integers(1, 60),
)
def test_whoever_waits_as_long_as_they_are_told_is_admitted_and_not_before(
    asked: list[tuple[int, int, int]], tokens: int
) -> None:
    counter = LimitHarness(requests_per_minute=10, tokens_per_minute=100)
    for step, reserved, used in asked:
        counter.now += step
        room = counter.ask(reserved)
        if isinstance(room, Reservation):
            counter.settle(room, used)
    refusal = counter.ask(tokens)
    if isinstance(refusal, Denial):
        assert refusal.wait is not None
        assert refusal.wait <= MINUTE
        counter.now += refusal.wait - 1
        assert isinstance(counter.ask(tokens), Denial)
        counter.now += 1
        assert isinstance(counter.ask(tokens), Reservation)


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "settle", "undo", "step"]), st.integers(0, 200), st.integers(0, 30 * SECOND)),
        max_size=60,
    )
)
def test_after_settlement_and_a_minute_nothing_is_left_but_what_was_spent(steps: list[tuple[str, int, int]]) -> None:
    counter = LimitHarness(requests_per_minute=50, tokens_per_minute=1000, parallel=9, tokens_per_month=100_000)
    under_way, spent = list[Reservation](), 0
    for verb, tokens, step in steps:
        match verb:
            case "ask":
                room = counter.ask(tokens, lease_seconds=10_000)
                under_way += [room] if isinstance(room, Reservation) else []
            case "settle" if under_way:
                counter.settle(under_way.pop(0), tokens)
                spent += tokens
            case "undo" if under_way:
                counter.settle(under_way.pop(), was_sent=False)
            case _:
                counter.now += step
        assert len(counter.meter.pending) == len(under_way)
        assert all(entry.requests >= 0 and entry.tokens >= 0 for entry in counter.meter.entries)
    for room in under_way:
        counter.settle(room, was_sent=False)
    counter.now += MINUTE
    assert (counter.meter.entries, counter.meter.pending, counter.meter.month.tokens) == ((), (), spent)


def test_what_was_reserved_and_not_used_is_free_at_once() -> None:
    counter = LimitHarness(tokens_per_minute=100)
    room = counter.ask(100)
    counter.pass_by(5)
    assert wait_of(counter.ask(1)) == 55 * SECOND
    counter.settle(room, 10)
    assert wait_of(counter.ask(91)) == 55 * SECOND
    assert isinstance(counter.ask(90), Reservation)


def test_a_request_that_no_model_was_asked_for_has_taken_nothing() -> None:
    counter = LimitHarness(requests_per_minute=1, tokens_per_day=100)
    counter.settle(counter.ask(100), was_sent=False)
    counter.settle(counter.ask(100), 60)
    assert (sum(entry.requests for entry in counter.meter.entries), counter.meter.day.tokens) == (1, 60)


def test_what_was_used_beyond_its_reservation_counts_from_when_it_is_known() -> None:
    counter = LimitHarness(tokens_per_minute=100)
    room = counter.ask(10)
    counter.pass_by(70)
    counter.settle(room, 110)
    assert wait_of(counter.ask(1)) == MINUTE
    counter.pass_by(60)
    assert isinstance(counter.ask(100), Reservation)


def test_a_request_larger_than_its_limit_is_never_admitted_and_told_so() -> None:
    for numbers in ({"tokens_per_minute": 100}, {"tokens_per_day": 100}, {"cost_per_month": 100}):
        refusal = LimitHarness(**numbers).ask(101, cost=101)
        assert isinstance(refusal, Denial)
        assert (refusal.wait, refusal.kind) == (None, next(iter(numbers)).replace("tokens_per_minute", "tokens"))


def test_a_slot_is_free_when_its_holder_is_done_or_silent_for_too_long() -> None:
    counter = LimitHarness(parallel=2)
    first, second = counter.ask(), counter.ask()
    assert isinstance(counter.ask(), Denial)
    counter.settle(first)
    third = counter.ask(lease_seconds=100)
    assert isinstance(third, Reservation)
    # when the second one says nothing for the time of its lease
    counter.pass_by(15)
    assert isinstance(counter.ask(), Reservation)
    assert isinstance(second, Reservation)
    # and is heard of again: then it counts, for it goes on
    counter.meters = renew_reservations(counter.meters, [second], 15, counter.now)
    assert len(counter.meter.pending) == 3
    assert isinstance(counter.ask(), Denial)


def test_who_is_renewed_keeps_the_slot() -> None:
    counter = LimitHarness(parallel=1)
    room = counter.ask()
    assert isinstance(room, Reservation)
    for _ in range(10):
        counter.pass_by(10)
        counter.meters = renew_reservations(counter.meters, [room], 15, counter.now)
        assert isinstance(counter.ask(), Denial)


def test_a_budget_is_reserved_before_and_settled_after() -> None:
    counter = LimitHarness(tokens_per_day=100)
    room = counter.ask(100)
    reserved = counter.ask(1)
    assert isinstance(reserved, Denial)
    assert (reserved.is_budget, reserved.wait) == (False, SECOND), "others may give something back soon"
    counter.settle(room, 95)
    assert isinstance(counter.ask(5), Reservation)
    counter.settle(counter.rooms[-1], 5)
    spent = counter.ask(1)
    assert isinstance(spent, Denial)
    assert (spent.is_budget, spent.wait) == (True, 12 * 60 * MINUTE)
    counter.now += spent.wait or 0
    assert isinstance(counter.ask(100), Reservation)


def test_a_month_is_the_calendars_in_utc() -> None:
    counter = LimitHarness(cost_per_month=1000)
    counter.settle(counter.ask(cost=1000), cost=1000)
    refusal = counter.ask()
    assert wait_of(refusal) == int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * SECOND - NOON
    counter.now += (wait_of(refusal) or 0) - 1
    assert isinstance(counter.ask(), Denial)
    counter.now += 1
    assert isinstance(counter.ask(), Reservation)


def test_a_vanished_process_leaves_nothing_behind_in_a_budget() -> None:
    counter = LimitHarness(tokens_per_month=100)
    counter.ask(100, lease_seconds=15)
    assert isinstance(counter.ask(100), Denial)
    counter.pass_by(15)
    assert isinstance(counter.ask(100), Reservation)


def test_of_several_limits_all_leave_room_or_nothing_is_taken() -> None:
    wide, narrow = Limit(who="all", requests_per_minute=10), Limit(who="user", id=7, requests_per_minute=1)
    wish = ReservationRequest(id="a", limits=(("all", wide), ("user:7", narrow)))
    after, room = try_reserve({}, wish, NOON)
    assert room.gauges == {"requests": (1, 0, 60.0)}, "the tightest one is told"
    again, refusal = try_reserve(after, msgspec.structs.replace(wish, id="b"), NOON)
    assert again == {}
    assert isinstance(refusal, Denial)
    assert refusal.limit is narrow
    assert sum(entry.requests for entry in after["all"].entries) == 1


@given(st.integers(SECOND, 400 * DAY))
def test_a_clock_that_was_wrong_is_forgiven_within_a_minute(jump: int) -> None:
    # given a meter that was used by a clock far ahead
    counter = LimitHarness(requests_per_minute=1, tokens_per_day=100)
    counter.now += jump
    counter.settle(counter.ask(60), 60)
    counter.now -= jump
    # then what it counted is not forgotten, and not counted for ever
    refusal = counter.ask(40)
    assert isinstance(refusal, Denial)
    counter.pass_by(60 + 11)
    assert isinstance(counter.ask(40), Reservation)
    assert isinstance(counter.ask(41), Denial)


def test_a_transaction_that_was_overtaken_takes_the_later_time() -> None:
    counter = LimitHarness(requests_per_minute=3)
    counter.ask()
    counter.pass_by(-0.5)
    room = counter.ask()
    assert isinstance(room, Reservation)
    assert room.at == NOON


@pytest.mark.parametrize("mean_milliseconds", [1, 20, 60, 95, 300])
def test_a_busy_meter_stays_small_and_forgets_nothing_too_early(mean_milliseconds: int) -> None:
    counter, admitted_at, chance = LimitHarness(requests_per_minute=1_000_000), list[int](), Random(mean_milliseconds)
    for _ in range(MAX_ENTRIES * 3):
        counter.now += chance.randrange(mean_milliseconds * 2000)
        counter.ask()
        admitted_at.append(counter.now)
        assert len(counter.meter.entries) <= MAX_ENTRIES
    counted = sum(entry.requests for entry in counter.meter.entries)
    assert sum(at > counter.now - MINUTE for at in admitted_at) <= counted
    assert counted <= sum(at > counter.now - MINUTE - SLOT for at in admitted_at)


@pytest.mark.parametrize(
    ("body", "prompt", "output", "is_said"),
    [
        ({"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 50}, 10, 50, True),
        ({"messages": [{"role": "user", "content": "x" * 40}], "max_completion_tokens": 5, "n": 3}, 10, 15, True),
        ({"prompt": "x" * 4}, 1, DEFAULT_OUTPUT_TOKENS, False),
        ({"input": "x" * 4, "max_output_tokens": 9}, 1, 9, True),
        ({"prompt": "x" * 4, "max_tokens": "many"}, 1, DEFAULT_OUTPUT_TOKENS, False),
        ({"prompt": "x" * 4, "max_tokens": -7}, 1, 0, True),
        ([], 0, DEFAULT_OUTPUT_TOKENS, False),
    ],
)
def test_a_request_is_reckoned_by_its_texts_and_the_most_that_it_asks_for(
    body: Any, prompt: int, output: int, is_said: bool
) -> None:
    about = estimate_tokens("/v1/chat/completions", msgspec.json.encode(body))
    assert (about.prompt, about.output, about.is_explicit) == (prompt, output, is_said)


def test_a_guess_never_makes_a_request_too_large() -> None:
    about = estimate_tokens("/v1/completions", b'{"prompt": "four"}')
    assert [about.capped(most) for most in (None, 1000, 10, 0)] == [
        1 + DEFAULT_OUTPUT_TOKENS,
        1 + DEFAULT_OUTPUT_TOKENS,
        10,
        1,
    ]
    assert estimate_tokens("/v1/embeddings", b'{"input": "four"}').capped(None) == 1
