"""The bound on wrong answers, against published values and against chance."""

from __future__ import annotations

import random

import pytest

from signoff.core.reviews.error_budget import upper_bound

# By audit rate: the bounds for 0, 1, 2, 5, 10 and 20 wrong answers that audits find, with a confidence of 95 %.
TABLE = {
    0.05: [87, 133, 173, 276, 429, 708],
    0.10: [42, 65, 84, 136, 211, 350],
    0.20: [19, 30, 40, 65, 102, 170],
    0.50: [6, 10, 13, 22, 36, 62],
}


@pytest.mark.parametrize("audit_rate", TABLE)
def test_the_bound_has_its_published_values(audit_rate: float) -> None:
    assert [upper_bound(detected, audit_rate, 0.95) for detected in (0, 1, 2, 5, 10, 20)] == TABLE[audit_rate]


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("audit_rate", [0.001, 0.3, 0.99])
def test_more_finds_and_more_confidence_never_lower_the_bound(audit_rate: float, confidence: float) -> None:
    bounds = [upper_bound(detected, audit_rate, confidence) for detected in range(30)]
    assert bounds == sorted(bounds)
    assert all(value >= detected for detected, value in enumerate(bounds))
    assert bounds[5] <= upper_bound(5, audit_rate, (1 + confidence) / 2)


def test_a_large_number_of_finds_approaches_the_share_that_was_audited() -> None:
    assert upper_bound(100_000, 0.1, 0.95) == pytest.approx(1_000_000, rel=0.02)


@pytest.mark.parametrize("audit_rate", [0.05, 0.2])
def test_the_bound_holds_at_all_times_together(audit_rate: float) -> None:
    # given 2,000 runs of 300 wrong answers, each audited by a coin of its own
    chance, runs, broken = random.Random(1), 2_000, 0
    bounds = [upper_bound(detected, audit_rate, 0.9) for detected in range(301)]
    for _ in range(runs):
        detected = 0
        for passed in range(1, 301):
            detected += chance.random() < audit_rate
            if passed > bounds[detected]:
                broken += 1
                break
    # then the number of wrong answers exceeds its bound at any time in at most a tenth of the runs
    assert broken <= runs * 0.1


@pytest.mark.parametrize(
    ("detected", "audit_rate", "confidence"),
    [(-1, 0.1, 0.95), (0, 0.0, 0.95), (0, 1.0, 0.95), (0, 0.1, 0.0), (0, 0.1, 1.0), (0, float("nan"), 0.95)],
)
def test_parameters_out_of_range_are_refused(detected: int, audit_rate: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        upper_bound(detected, audit_rate, confidence)
