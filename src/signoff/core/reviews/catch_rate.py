"""Catch rate: the share of wrong answers that reviewers reject or correct, from items that were planted.

The bounds are exact for any number of items. (C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial
limits illustrated in the case of the binomial", Biometrika 26, 1934.)
"""

import math
from functools import lru_cache

_STEPS = 60
# Each side of an interval of 95 %.
INTERVAL_ERROR = 0.025


@lru_cache(maxsize=4096)
def lowest_catch_rate(caught: int, judged: int, error: float) -> float:
    """Return the lower confidence bound of a catch rate, from 0 to 1.

    Args:
        caught: Planted items that were rejected or corrected.
        judged: Planted items that were judged, at least `caught`.
        error: Probability that the rate is lower than the bound, between 0 and 1.

    Raises:
        ValueError: A parameter is out of range.
    """
    if not 0 <= caught <= judged or not 0 < error < 1:
        raise ValueError("`caught` must be from 0 to `judged`, and `error` between 0 and 1")
    if caught == 0:
        return 0.0
    lowest, highest = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (lowest + highest) / 2
        if _tail(caught, judged, middle) < error:
            lowest = middle
        else:
            highest = middle
    return lowest


def highest_catch_rate(caught: int, judged: int, error: float) -> float:
    """Return the upper confidence bound of a catch rate; see `lowest_catch_rate`."""
    return 1 - lowest_catch_rate(judged - caught, judged, error)


def _tail(successes: int, trials: int, rate: float) -> float:
    """Return the probability of at least `successes` in `trials`, where each succeeds with the probability `rate`."""
    if rate <= 0 or rate >= 1:
        return float(rate >= 1)
    log_rate, log_miss = math.log(rate), math.log1p(-rate)
    total = math.lgamma(trials + 1)
    logs = (
        total - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_rate + (trials - k) * log_miss
        for k in range(successes, trials + 1)
    )
    return min(1.0, math.fsum(math.exp(log) for log in logs))
