"""The catch rate, against published bounds of Clopper and Pearson."""

from __future__ import annotations

import pytest

from signoff.core.reviews.catch_rate import highest_catch_rate, lowest_catch_rate

# Exact 95 % intervals, as textbooks print them.
PUBLISHED = {
    (0, 10): (0.0, 0.3085),
    (1, 10): (0.0025, 0.4450),
    (5, 10): (0.1871, 0.8129),
    (8, 10): (0.4439, 0.9748),
    (10, 10): (0.6915, 1.0),
    (50, 100): (0.3983, 0.6017),
    (95, 100): (0.8872, 0.9836),
}


@pytest.mark.parametrize("counts", PUBLISHED, ids=str)
def test_the_interval_has_its_published_bounds(counts: tuple[int, int]) -> None:
    bounds = lowest_catch_rate(*counts, 0.025), highest_catch_rate(*counts, 0.025)
    assert bounds == pytest.approx(PUBLISHED[counts], abs=6e-5)


@pytest.mark.parametrize("judged", [1, 7, 1000])
def test_if_all_are_caught_the_bound_is_a_root(judged: int) -> None:
    assert lowest_catch_rate(judged, judged, 0.05) == pytest.approx(0.05 ** (1 / judged))


def test_nothing_judged_says_nothing() -> None:
    assert (lowest_catch_rate(0, 0, 0.05), highest_catch_rate(0, 0, 0.05)) == (0, 1)


@pytest.mark.parametrize("wrong", [(-1, 3, 0.05), (4, 3, 0.05), (1, 3, 0), (1, 3, 1)], ids=str)
def test_parameters_out_of_range_are_refused(wrong: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        lowest_catch_rate(*wrong)
