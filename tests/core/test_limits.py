"""Tests of the rules of limits: usage never exceeds a limit, and a request that fits is never refused."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.counters import MAX_ENTRIES, MERGE_SPAN_US, Counter, expire, with_sums
from signoff.core.estimate import DEFAULT_OUTPUT_TOKENS, estimate_tokens
from signoff.core.limits import (
    Denial,
    Limit,
    Reservation,
    ReservationRequest,
    renew_reservations,
    settle_reservation,
    try_reserve,
)
from signoff.core.times import MINUTE_US, SECOND_US
from signoff.errors import BadRequest

NOON = int(datetime(2026, 2, 27, 12, tzinfo=UTC).timestamp()) * SECOND_US
DAY = 24 * 60 * MINUTE_US


class LimitHarness:
    """A limit with its counter, and every reservation that it has granted."""

    def __init__(self, **numbers: int) -> None:
        self.limit = Limit(scope="all", **numbers)  # type: ignore[arg-type]
        self.counters: Mapping[str, Counter] = {}
        self.now = NOON
        self.reservations: list[Reservation] = []
        self._number = 0

    @property
    def counter(self) -> Counter:
        counter = expire(self.counters.get("all", Counter()), self.now)
        assert with_sums(counter) == counter
        return counter

    def ask(self, tokens: int = 0, cost: int = 0, lease_seconds: float = 15) -> Reservation | Denial:
        self._number += 1
        request = ReservationRequest(
            id=f"job-{self._number}",
            limits=(("all", self.limit),),
            tokens=tokens,
            cost=cost,
            lease_seconds=lease_seconds,
        )
        after, outcome = try_reserve(self.counters, request, self.now)
        self.counters = {**self.counters, **after}
        if isinstance(outcome, Reservation):
            self.reservations.append(outcome)
        return outcome

    def settle(
        self, reservation: Reservation | Denial, tokens: int = 0, cost: int = 0, *, was_sent: bool = True
    ) -> None:
        assert isinstance(reservation, Reservation)
        self.counters = settle_reservation(
            self.counters, reservation, tokens=tokens, cost=cost, was_sent=was_sent, now=self.now
        )

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * SECOND_US)


def wait_of(denial: Reservation | Denial) -> int | None:
    assert isinstance(denial, Denial)
    return denial.wait_us


waits = st.lists(st.integers(0, 40 * SECOND_US), min_size=1, max_size=60)


@given(waits, st.integers(1, 8))
def test_requests_per_minute_are_limited_exactly(steps: list[int], limit: int) -> None:
    harness, admitted_at = LimitHarness(requests_per_minute=limit), list[int]()
    for step in steps:
        harness.now += step
        in_the_last_minute = sum(at > harness.now - MINUTE_US for at in admitted_at)
        is_admitted = isinstance(harness.ask(), Reservation)
        assert is_admitted == (in_the_last_minute < limit)
        if is_admitted:
            admitted_at.append(harness.now)


@given(st.lists(st.tuples(st.integers(0, 40 * SECOND_US), st.integers(1, 60)), min_size=1, max_size=60))
def test_tokens_per_minute_are_limited_exactly(
    requests: list[tuple[int, int]],
) -> None:
    harness, admitted_at = LimitHarness(tokens_per_minute=100), list[tuple[int, int]]()
    for step, tokens in requests:
        harness.now += step
        used = sum(count for at, count in admitted_at if at > harness.now - MINUTE_US)
        is_admitted = isinstance(harness.ask(tokens), Reservation)
        assert is_admitted == (used + tokens <= 100)
        if is_admitted:
            admitted_at.append((harness.now, tokens))


@given(
    st.lists(
        st.tuples(st.integers(0, 20 * SECOND_US), st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=40
    ),
    st.integers(1, 60),
)
def test_a_denied_request_is_admitted_exactly_after_its_wait(requests: list[tuple[int, int, int]], tokens: int) -> None:
    harness = LimitHarness(requests_per_minute=10, tokens_per_minute=100)
    for step, reserved, used in requests:
        harness.now += step
        reservation = harness.ask(reserved)
        if isinstance(reservation, Reservation):
            harness.settle(reservation, used)
    denial = harness.ask(tokens)
    if isinstance(denial, Denial):
        assert denial.wait_us is not None
        assert denial.wait_us <= MINUTE_US
        harness.now += denial.wait_us - 1
        assert isinstance(harness.ask(tokens), Denial)
        harness.now += 1
        assert isinstance(harness.ask(tokens), Reservation)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "settle", "undo", "step"]), st.integers(0, 200), st.integers(0, 30 * SECOND_US)
        ),
        max_size=60,
    )
)
def test_a_minute_after_all_settlements_only_the_spent_tokens_remain(steps: list[tuple[str, int, int]]) -> None:
    harness = LimitHarness(requests_per_minute=50, tokens_per_minute=1000, parallel=9, tokens_per_month=100_000)
    pending, spent = list[Reservation](), 0
    for verb, tokens, step in steps:
        match verb:
            case "ask":
                reservation = harness.ask(tokens, lease_seconds=10_000)
                pending += [reservation] if isinstance(reservation, Reservation) else []
            case "settle" if pending:
                harness.settle(pending.pop(0), tokens)
                spent += tokens
            case "undo" if pending:
                harness.settle(pending.pop(), was_sent=False)
            case _:
                harness.now += step
        assert len(harness.counter.pending) == len(pending)
        assert all(entry.requests >= 0 and entry.tokens >= 0 for entry in harness.counter.entries)
    for reservation in pending:
        harness.settle(reservation, was_sent=False)
    harness.now += MINUTE_US
    assert (harness.counter.entries, harness.counter.pending, harness.counter.month.tokens) == ((), (), spent)


def test_unused_reserved_tokens_are_free_after_the_settlement() -> None:
    harness = LimitHarness(tokens_per_minute=100)
    reservation = harness.ask(100)
    harness.advance(5)
    assert wait_of(harness.ask(1)) == 55 * SECOND_US
    harness.settle(reservation, 10)
    assert wait_of(harness.ask(91)) == 55 * SECOND_US
    assert isinstance(harness.ask(90), Reservation)


def test_a_request_that_was_not_sent_uses_nothing() -> None:
    harness = LimitHarness(requests_per_minute=1, tokens_per_day=100)
    harness.settle(harness.ask(100), was_sent=False)
    harness.settle(harness.ask(100), 60)
    assert (sum(entry.requests for entry in harness.counter.entries), harness.counter.day.tokens) == (1, 60)


def test_usage_beyond_a_reservation_counts_from_its_settlement() -> None:
    harness = LimitHarness(tokens_per_minute=100)
    reservation = harness.ask(10)
    harness.advance(70)
    harness.settle(reservation, 110)
    assert wait_of(harness.ask(1)) == MINUTE_US
    harness.advance(60)
    assert isinstance(harness.ask(100), Reservation)


def test_a_request_larger_than_its_limit_is_denied_without_a_wait() -> None:
    for numbers in ({"tokens_per_minute": 100}, {"tokens_per_day": 100}, {"cost_per_month": 100}):
        denial = LimitHarness(**numbers).ask(101, cost=101)
        assert isinstance(denial, Denial)
        assert (denial.wait_us, denial.kind) == (None, next(iter(numbers)).replace("tokens_per_minute", "tokens"))


def test_a_slot_is_free_after_its_settlement_or_the_end_of_its_lease() -> None:
    harness = LimitHarness(parallel=2)
    first, second = harness.ask(), harness.ask()
    assert isinstance(harness.ask(), Denial)
    harness.settle(first)
    third = harness.ask(lease_seconds=100)
    assert isinstance(third, Reservation)
    # when the second reservation is not renewed for the time of its lease, then its slot is free
    harness.advance(15)
    assert isinstance(harness.ask(), Reservation)
    assert isinstance(second, Reservation)
    # when it is renewed after all, then it counts again, because its request still runs
    harness.counters = renew_reservations(harness.counters, [second], 15, harness.now)
    assert len(harness.counter.pending) == 3
    assert isinstance(harness.ask(), Denial)


def test_a_renewed_reservation_keeps_its_slot() -> None:
    harness = LimitHarness(parallel=1)
    reservation = harness.ask()
    assert isinstance(reservation, Reservation)
    for _ in range(10):
        harness.advance(10)
        harness.counters = renew_reservations(harness.counters, [reservation], 15, harness.now)
        assert isinstance(harness.ask(), Denial)


def test_a_budget_is_reserved_before_and_settled_after() -> None:
    harness = LimitHarness(tokens_per_day=100)
    reservation = harness.ask(100)
    denied = harness.ask(1)
    assert isinstance(denied, Denial)
    assert (denied.is_budget, denied.wait_us) == (False, SECOND_US), "others may give something back soon"
    harness.settle(reservation, 95)
    assert isinstance(harness.ask(5), Reservation)
    harness.settle(harness.reservations[-1], 5)
    spent = harness.ask(1)
    assert isinstance(spent, Denial)
    assert (spent.is_budget, spent.wait_us) == (True, 12 * 60 * MINUTE_US)
    harness.now += spent.wait_us or 0
    assert isinstance(harness.ask(100), Reservation)


def test_a_month_is_a_calendar_month_in_utc() -> None:
    harness = LimitHarness(cost_per_month=1000)
    harness.settle(harness.ask(cost=1000), cost=1000)
    denial = harness.ask()
    assert wait_of(denial) == int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * SECOND_US - NOON
    harness.now += (wait_of(denial) or 0) - 1
    assert isinstance(harness.ask(), Denial)
    harness.now += 1
    assert isinstance(harness.ask(), Reservation)


def test_the_budget_of_a_dead_process_is_free_after_its_lease() -> None:
    harness = LimitHarness(tokens_per_month=100)
    harness.ask(100, lease_seconds=15)
    assert isinstance(harness.ask(100), Denial)
    harness.advance(15)
    assert isinstance(harness.ask(100), Reservation)


def test_a_request_under_several_limits_is_admitted_by_all_or_takes_nothing() -> None:
    wide, narrow = Limit(scope="all", requests_per_minute=10), Limit(scope="user", id=7, requests_per_minute=1)
    request = ReservationRequest(id="a", limits=(("all", wide), ("user:7", narrow)))
    after, reservation = try_reserve({}, request, NOON)
    assert reservation.gauges == {"requests": (1, 0, 60.0)}, "the tightest one is told"
    after_denial, denial = try_reserve(after, msgspec.structs.replace(request, id="b"), NOON)
    assert after_denial == {}
    assert isinstance(denial, Denial)
    assert denial.limit is narrow
    assert sum(entry.requests for entry in after["all"].entries) == 1


@given(st.integers(SECOND_US, 400 * DAY))
def test_a_counter_recovers_from_a_wrong_clock_within_a_minute(jump: int) -> None:
    # given a counter that was used with a clock far ahead
    harness = LimitHarness(requests_per_minute=1, tokens_per_day=100)
    harness.now += jump
    harness.settle(harness.ask(60), 60)
    harness.now -= jump
    # then its usage still counts, but not for ever
    denial = harness.ask(40)
    assert isinstance(denial, Denial)
    harness.advance(60 + 11)
    assert isinstance(harness.ask(40), Reservation)
    assert isinstance(harness.ask(41), Denial)


def test_an_overtaken_transaction_uses_the_later_time() -> None:
    harness = LimitHarness(requests_per_minute=3)
    harness.ask()
    harness.advance(-0.5)
    reservation = harness.ask()
    assert isinstance(reservation, Reservation)
    assert reservation.at == NOON


@pytest.mark.parametrize("mean_milliseconds", [1, 20, 60, 95, 300])
def test_a_busy_counter_stays_small_and_drops_nothing_too_early(mean_milliseconds: int) -> None:
    harness, admitted_at, rng = LimitHarness(requests_per_minute=1_000_000), list[int](), Random(mean_milliseconds)
    for _ in range(MAX_ENTRIES * 3):
        harness.now += rng.randrange(mean_milliseconds * 2000)
        harness.ask()
        admitted_at.append(harness.now)
        assert len(harness.counter.entries) <= MAX_ENTRIES
    counted = sum(entry.requests for entry in harness.counter.entries)
    assert sum(at > harness.now - MINUTE_US for at in admitted_at) <= counted
    assert counted <= sum(at > harness.now - MINUTE_US - MERGE_SPAN_US for at in admitted_at)


@pytest.mark.parametrize(
    ("body", "prompt", "output", "is_said"),
    [
        ({"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 50}, 10, 50, True),
        ({"messages": [{"role": "user", "content": "x" * 40}], "max_completion_tokens": 5, "n": 3}, 10, 15, True),
        ({"prompt": "x" * 4}, 1, DEFAULT_OUTPUT_TOKENS, False),
        ({"input": "x" * 4, "max_output_tokens": 9}, 1, 9, True),
        ({"prompt": "x" * 4, "max_tokens": 1e6, "n": 2.0}, 1, 2_000_000, True),
        ({"prompt": "x" * 4, "max_tokens": 0.5, "best_of": 3}, 1, 3, True),
        ({"prompt": "x" * 4, "max_completion_tokens": 1, "max_tokens": 900}, 1, 900, True),
        ({"prompt": "x" * 4, "max_tokens": None}, 1, DEFAULT_OUTPUT_TOKENS, False),
        ({"prompt": "x" * 4, "max_tokens": 1e300}, 1, 2**31 - 1, True),
        # llama.cpp takes -1 for no maximum
        ({"prompt": "x" * 4, "max_tokens": -1}, 1, DEFAULT_OUTPUT_TOKENS, False),
        ({"prompt": "x" * 4, "max_tokens": -0.5, "n": -2}, 1, DEFAULT_OUTPUT_TOKENS, False),
        ([], 0, DEFAULT_OUTPUT_TOKENS, False),
    ],
)
def test_a_request_is_estimated_by_its_texts_and_its_maximum_output(
    body: Any, prompt: int, output: int, is_said: bool
) -> None:
    estimate = estimate_tokens("/v1/chat/completions", msgspec.json.encode(body))
    assert (estimate.prompt, estimate.output, estimate.is_explicit) == (prompt, output, is_said)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"])
@pytest.mark.parametrize("value", ["true", '"5"', "[7]", "{}", "1e999"])
def test_a_maximum_that_is_not_a_number_is_refused(name: str, value: str) -> None:
    with pytest.raises(BadRequest, match=f"`{name}` must be an integer"):
        estimate_tokens("/v1/chat/completions", f'{{"{name}": {value}}}'.encode())


def test_an_estimate_never_exceeds_the_limit() -> None:
    estimate = estimate_tokens("/v1/completions", b'{"prompt": "four"}')
    assert [estimate.capped(limit) for limit in (None, 1000, 10, 0)] == [
        1 + DEFAULT_OUTPUT_TOKENS,
        1 + DEFAULT_OUTPUT_TOKENS,
        10,
        1,
    ]
    assert estimate_tokens("/v1/embeddings", b'{"input": "four"}').capped(None) == 1
