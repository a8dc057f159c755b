"""Logistic regression and measures of accuracy, against other implementations."""

from __future__ import annotations

import math
import random

import pytest

from signoff.core.reviews.accuracy import brier_score, roc_auc, weighted_share
from signoff.core.reviews.logistic import fit_logistic, probability

NUMBER = 60
COLUMNS = [
    [math.sin(i * 1.7) * 1.5 for i in range(NUMBER)],
    [math.cos(i * 0.9) for i in range(NUMBER)],
    [float(i % 3 == 0) for i in range(NUMBER)],
]
OUTCOMES = [
    1.2 * a - 0.8 * b + 0.5 * c - 0.4 + 1.3 * math.sin(i * 3.3) > 0
    for i, (a, b, c) in enumerate(zip(*COLUMNS, strict=True))
]
ONES, UNEVEN = [1.0] * NUMBER, [10.0 if i % 5 == 0 else 1.0 for i in range(NUMBER)]
# scikit-learn 1.9: LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-12)
FITS = [
    (1.0, ONES, -0.617990244461467, [1.5484792555848808, -0.7552454157217646, 0.8533640534678241]),
    (1.0, UNEVEN, -0.20797538073893107, [1.6907883504400423, -0.706475570762696, -0.3614861084155346]),
    (10.0, ONES, -0.29427645896254384, [0.8001864180120555, -0.24389673433753378, 0.1834839656786313]),
    (10.0, UNEVEN, -0.3002663418960173, [1.160606309850471, -0.3685982803854606, -0.058266336308671215]),
]


@pytest.mark.parametrize(("penalty", "weights", "intercept", "coefficients"), FITS)
def test_the_fit_is_that_of_another_implementation(
    penalty: float, weights: list[float], intercept: float, coefficients: list[float]
) -> None:
    fitted = fit_logistic(COLUMNS, OUTCOMES, weights, penalty)
    assert fitted[0] == pytest.approx(intercept, abs=1e-6)
    assert fitted[1] == pytest.approx(coefficients, abs=1e-6)


def test_known_coefficients_are_recovered_from_many_observations() -> None:
    chance, true = random.Random(5), (-1.0, [0.8, -1.5, 0.0])
    rows = [[chance.gauss(0, 1) for _ in true[1]] for _ in range(20_000)]
    odds = [true[0] + sum(map(float.__mul__, row, true[1])) for row in rows]
    outcomes = [chance.random() < probability(each) for each in odds]
    intercept, coefficients = fit_logistic(
        [list(column) for column in zip(*rows, strict=True)], outcomes, [1.0] * 20_000
    )
    assert intercept == pytest.approx(true[0], abs=0.08)
    assert coefficients == pytest.approx(true[1], abs=0.08)


def test_outcomes_that_a_column_separates_have_finite_coefficients() -> None:
    column = [float(i) / NUMBER for i in range(NUMBER)]
    intercept, [coefficient] = fit_logistic([column], [each > 0.5 for each in column], ONES)
    assert 1 < coefficient < 20
    assert math.isfinite(intercept)
    assert fit_logistic([[0.0] * NUMBER, column], [each > 0.5 for each in column], ONES)[1][0] == pytest.approx(0)


def test_one_outcome_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="both values"):
        fit_logistic(COLUMNS, [True] * NUMBER, ONES)


def test_a_probability_has_no_overflow() -> None:
    assert (probability(-1e6), probability(0), probability(1e6)) == (0, 0.5, 1)


@pytest.mark.parametrize(
    ("weights", "auc", "brier"),
    [(ONES, 0.9001122334455667, 0.13145998368646722), (UNEVEN, 0.8595196759259259, 0.15880411200406583)],
    ids=["equal", "uneven"],
)
def test_the_accuracy_is_that_of_another_implementation(weights: list[float], auc: float, brier: float) -> None:
    _, _, intercept, coefficients = FITS[0]
    odds = [intercept + sum(map(float.__mul__, coefficients, row)) for row in zip(*COLUMNS, strict=True)]
    area = roc_auc(odds, OUTCOMES, weights)
    square = brier_score([probability(each) for each in odds], OUTCOMES, weights)
    assert (area.value, square.value) == (pytest.approx(auc, abs=1e-9), pytest.approx(brier, abs=1e-7))
    assert 0.5 < area.lowest < area.value < area.highest < 1
    assert 0 < square.lowest < square.value < square.highest < 1


def test_the_intervals_contain_the_truth_as_often_as_they_say() -> None:
    # given scores of which the true area is 0.76 (normal, one standard deviation apart), each sampled with a chance
    chance, hits, runs, truth = random.Random(9), 0, 400, 0.5 * (1 + math.erf(0.5))
    for _ in range(runs):
        outcomes = [chance.random() < 0.3 for _ in range(150)]
        weights = [chance.choice((1.0, 4.0)) for _ in outcomes]
        scores = [chance.gauss(float(outcome), 1) for outcome in outcomes]
        area = roc_auc(scores, outcomes, weights)
        hits += area.lowest <= truth <= area.highest
    assert hits >= 0.92 * runs


def test_few_observations_without_an_error_leave_a_wide_interval() -> None:
    area = roc_auc([0.0] * 20 + [1.0] * 20, [False] * 20 + [True] * 20, [1.0] * 40)
    assert (area.value, area.highest) == (1, 1)
    assert area.lowest == pytest.approx(0.025 ** (1 / 20))


def test_a_share_with_uneven_weights_counts_fewer_observations() -> None:
    even = weighted_share([True, False] * 20, [1.0] * 40)
    uneven = weighted_share([True, False] * 20, [1.0, 1.0, 10.0, 10.0] * 10)
    assert even.value == uneven.value == 0.5
    assert uneven.lowest < even.lowest < 0.5 < even.highest < uneven.highest
