"""Accuracy of predicted probabilities, with intervals of 95 %: the area under the ROC curve, and the Brier score.

Observations have weights, the inverse of the probability with which they were sampled. (E. R. DeLong, D. M. DeLong and
D. L. Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating characteristic curves",
Biometrics 44, 1988; G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review
78, 1950.)
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from signoff.core.reviews.catch_rate import INTERVAL_ERROR, highest_catch_rate, lowest_catch_rate

_NORMAL = 1.959964  # quantile of the normal distribution for an interval of 95 %


class Estimate(msgspec.Struct, frozen=True):
    """An estimate with an interval of 95 %."""

    value: float
    """The estimate."""
    lowest: float
    """Lower end of the interval."""
    highest: float
    """Upper end of the interval."""


def roc_auc(scores: Sequence[float], outcomes: Sequence[bool], weights: Sequence[float]) -> Estimate:
    """Return the probability that an observation with the outcome has a higher score than one without it.

    Args:
        scores: Score of each observation; equal ones count half.
        outcomes: Outcome of each observation, both of which occur.
        weights: Weight of each observation, above 0.
    """
    rows = list(zip(scores, outcomes, weights, strict=True))
    positive = [(score, weight) for score, outcome, weight in rows if outcome]
    negative = [(score, weight) for score, outcome, weight in rows if not outcome]
    above = _shares_below(positive, negative)
    below = [1 - share for share in _shares_below(negative, positive)]
    value = _mean(above, [weight for _, weight in positive])
    variance = _variance(above, [weight for _, weight in positive])
    variance += _variance(below, [weight for _, weight in negative])
    number = min(len(positive), len(negative))
    if variance == 0 or not 0 < value < 1:  # no error was seen, which a small number cannot rule out
        return Estimate(value, *_exact(value, number))
    # on the scale of log-odds, so that the interval stays between 0 and 1
    spread = _NORMAL * math.sqrt(variance) / (value * (1 - value))
    centre = math.log(value / (1 - value))
    return Estimate(value, *(1 / (1 + math.exp(-(centre + sign * spread))) for sign in (-1, 1)))


def brier_score(chances: Sequence[float], outcomes: Sequence[bool], weights: Sequence[float]) -> Estimate:
    """Return the mean squared difference between the predicted probabilities and what came; 0 is best."""
    squares = [(chance - outcome) ** 2 for chance, outcome in zip(chances, outcomes, strict=True)]
    value, spread = _mean(squares, weights), _NORMAL * math.sqrt(_variance(squares, weights))
    return Estimate(value, max(0.0, value - spread), min(1.0, value + spread))


def weighted_share(outcomes: Sequence[bool], weights: Sequence[float]) -> Estimate:
    """Return the share of observations with the outcome.

    The interval is that of as many observations of equal weight as these are worth (L. Kish, "Survey Sampling", 1965).
    """
    value = _mean([float(outcome) for outcome in outcomes], weights)
    number = math.floor(sum(weights) ** 2 / sum(weight * weight for weight in weights) + 1e-9)
    return Estimate(value, *_exact(value, number))


def _exact(value: float, number: int) -> tuple[float, float]:
    """Return the interval of a share of `number` observations of equal weight."""
    lowest = lowest_catch_rate(math.floor(value * number + 1e-9), number, INTERVAL_ERROR)
    return lowest, highest_catch_rate(math.ceil(value * number - 1e-9), number, INTERVAL_ERROR)


def _shares_below(ones: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> list[float]:
    """Return, for each of `ones`, the weighted share of `others` with a lower score; equal ones count half."""
    ordered = sorted(others)
    scores, sums = [score for score, _ in ordered], [0.0, *accumulate(weight for _, weight in ordered)]
    return [(sums[bisect_left(scores, one)] + sums[bisect_right(scores, one)]) / (2 * sums[-1]) for one, _ in ones]


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _variance(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the variance of the weighted mean of independent values."""
    if len(values) < 2:
        return 0.0
    mean, total = _mean(values, weights), sum(weights)
    squares = sum((weight / total * (value - mean)) ** 2 for value, weight in zip(values, weights, strict=True))
    return squares * len(values) / (len(values) - 1)
