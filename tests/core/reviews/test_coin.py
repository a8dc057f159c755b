"""Coins: uniform, fixed by the answer, and not to be predicted from anything but the key."""

from __future__ import annotations

import math
import random

import pytest

from signoff.core.reviews.coin import Coin, toss

KEY = b"k" * 32


def ids(number: int, prefix: str = "") -> list[str]:
    """Return ids that share all but their last digits, as those of jobs that are made at one time do."""
    return [f"{prefix}01890a5d-ac96-774b-bcce-{index:012x}" for index in range(number)]


def distance_from_uniform(values: list[float]) -> float:
    """Return the largest distance of the distribution of `values` from the uniform one (Kolmogorov-Smirnov)."""
    ordered, number = sorted(values), len(values)
    return max(max((i + 1) / number - value, value - i / number) for i, value in enumerate(ordered))


def test_a_coin_is_fixed_by_key_job_round_and_attempt() -> None:
    coins = {
        toss(key, job, review_round, attempt)
        for key in (KEY, b"other")
        for job in ("a", "b", "a1")
        for review_round in (0, 1, 11)
        for attempt in (1, 11)
    }
    assert len(coins) == 2 * 3 * 3 * 2
    assert toss(KEY, "a", 1, 2) == toss(KEY, "a", 1, 2)


@pytest.mark.parametrize("prefix", ["", "a", "caller-chosen-"])
def test_coins_are_uniform_whatever_the_ids_have_in_common(prefix: str) -> None:
    values = [toss(KEY, job_id, 0, 1) for job_id in ids(20_000, prefix)]
    assert all(0 <= value < 1 for value in values)
    # the distance exceeds 1.95 / sqrt(n) for one key in a thousand; this key is fixed
    assert distance_from_uniform(values) < 1.95 / math.sqrt(len(values))


def test_a_coin_is_independent_of_the_one_before_it_and_of_other_rounds_and_attempts() -> None:
    first = [toss(KEY, job_id, 0, 1) for job_id in ids(20_000)]
    others = [
        first[1:] + first[:1],
        [toss(KEY, job_id, 1, 1) for job_id in ids(20_000)],
        [toss(KEY, job_id, 0, 2) for job_id in ids(20_000)],
        [toss(KEY, job_id, 0, 1) for job_id in ids(20_000, "x")],
        [toss(b"another key", job_id, 0, 1) for job_id in ids(20_000)],
    ]
    for other in others:
        both = sum(1 for one, two in zip(first, other, strict=True) if one < 0.1 and two < 0.1)
        assert both == pytest.approx(200, abs=4 * math.sqrt(200))


def test_coins_have_53_random_bits() -> None:
    values = [toss(KEY, job_id, 0, 1) for job_id in ids(2_000)]
    odd = sum(int(value * 2**53) & 1 for value in values)
    assert odd == pytest.approx(1_000, abs=4 * math.sqrt(500))


def test_a_coin_below_the_audit_rate_is_an_audit_and_below_the_look_rate_a_look() -> None:
    chance = random.Random(1)
    for _ in range(100):
        value, audit_rate, look_rate = (chance.random() for _ in range(3))
        coin = Coin(value=value, look_rate=max(look_rate, audit_rate), audit_rate=audit_rate)
        assert coin.is_audit == (value < audit_rate)
        assert coin.is_look == (value < max(look_rate, audit_rate))
