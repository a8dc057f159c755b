"""Tests of the waits between attempts."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from signoff.core.retry import Backoff, wait_seconds

BACKOFFS = st.builds(Backoff, first_seconds=st.floats(0, 100), ceiling_seconds=st.floats(0, 1000))
ATTEMPTS = st.integers(1, 10_000)
RANDOM_FLOATS = st.floats(0, 1, exclude_max=True)
ALMOST_ONE = math.nextafter(1, 0)


@settings(deadline=None)
@given(BACKOFFS, ATTEMPTS, RANDOM_FLOATS)
def test_a_wait_is_never_negative_and_never_above_the_ceiling(
    backoff: Backoff, attempt: int, random_float: float
) -> None:
    assert 0 <= wait_seconds(backoff, attempt, random_float) <= backoff.ceiling_seconds


@settings(deadline=None)
@given(BACKOFFS, ATTEMPTS, RANDOM_FLOATS)
def test_the_longest_possible_wait_never_shrinks(backoff: Backoff, attempt: int, random_float: float) -> None:
    assert wait_seconds(backoff, attempt, random_float) <= wait_seconds(backoff, attempt + 1, random_float)


@settings(deadline=None)
@given(BACKOFFS, ATTEMPTS)
def test_the_jitter_covers_the_full_wait(backoff: Backoff, attempt: int) -> None:
    longest = wait_seconds(backoff, attempt, ALMOST_ONE)
    assert wait_seconds(backoff, attempt, 0) == 0
    assert math.isclose(wait_seconds(backoff, attempt, 0.5), longest / 2, rel_tol=1e-9, abs_tol=1e-300)


def test_the_longest_wait_doubles_up_to_the_ceiling() -> None:
    longest = [wait_seconds(Backoff(first_seconds=1, ceiling_seconds=10), attempt, 1) for attempt in range(1, 8)]
    assert longest == [1, 2, 4, 8, 10, 10, 10]


@settings(deadline=None)
@given(BACKOFFS, ATTEMPTS, RANDOM_FLOATS, st.floats(0, 1e9))
def test_the_wait_is_at_least_what_the_server_requests_up_to_an_hour(
    backoff: Backoff, attempt: int, random_float: float, retry_after: float
) -> None:
    waited = wait_seconds(backoff, attempt, random_float, retry_after)
    assert waited == max(min(retry_after, 3600), wait_seconds(backoff, attempt, random_float))


@settings(deadline=None)
@given(BACKOFFS, ATTEMPTS, RANDOM_FLOATS, st.floats(-10_000, 0))
def test_a_requested_wait_in_the_past_is_ignored(
    backoff: Backoff, attempt: int, random_float: float, retry_after: float
) -> None:
    assert wait_seconds(backoff, attempt, random_float, retry_after) == wait_seconds(backoff, attempt, random_float)
