"""Allowances: what is used of each number of a limit, and when it is free again."""

from __future__ import annotations

from signoff.core.allowances import Allowance, allowances
from signoff.core.counters import Admission, Counter, PendingReservation, PeriodUsage
from signoff.core.limits import Limit
from signoff.core.times import MINUTE_US

NOW = 1_770_000_000_000_000  # 2 February 2026, 02:40 UTC
HOUR = 60 * MINUTE_US


def test_a_minute_that_is_full_frees_with_its_first_entry_and_else_with_its_last() -> None:
    counter = Counter(entries=(Admission(NOW - 50, 1, 0), Admission(NOW - 20, 1, 30), Admission(NOW - 10, 0, 5)))
    full, open_, tokens = (
        *allowances(Limit(scope="all", requests_per_minute=2), counter, NOW),
        *allowances(Limit(scope="all", requests_per_minute=3), counter, NOW),
        *allowances(Limit(scope="all", tokens_per_minute=35), counter, NOW),
    )
    assert (full.used, full.is_exhausted, full.free_at) == (2, True, NOW - 50 + MINUTE_US)
    assert (open_.used, open_.is_exhausted, open_.free_at) == (2, False, NOW - 20 + MINUTE_US)
    assert (tokens.used, tokens.is_exhausted, tokens.free_at) == (35, True, NOW - 20 + MINUTE_US)


def test_days_and_months_count_what_is_reserved_and_end_with_the_calendar() -> None:
    pending = (PendingReservation("a", NOW + MINUTE_US, 40, 7), PendingReservation("b", NOW + MINUTE_US, 2, 1))
    counter = Counter(pending=pending, day=PeriodUsage(0, 100, 10), month=PeriodUsage(0, 1000, 20))
    limit = Limit(scope="all", parallel=2, tokens_per_day=142, tokens_per_month=2000, cost_per_day=50, cost_per_month=9)
    midnight = NOW - (2 * HOUR + 40 * MINUTE_US) + 24 * HOUR
    march = midnight + 26 * 24 * HOUR
    assert allowances(limit, counter, NOW) == [
        Allowance(name="parallel", most=2, used=2),
        Allowance(name="tokens_per_day", most=142, used=142, reserved=42, free_at=midnight),
        Allowance(name="tokens_per_month", most=2000, used=1042, reserved=42, free_at=march),
        Allowance(name="cost_per_day", most=50, used=18, reserved=8, free_at=midnight),
        Allowance(name="cost_per_month", most=9, used=28, reserved=8, free_at=march),
    ]


def test_what_is_not_used_is_free_now() -> None:
    limit = Limit(scope="all", requests_per_minute=2, tokens_per_day=3)
    assert [each.free_at for each in allowances(limit, Counter(), NOW)] == [None, None]
