"""Bound on the wrong answers that may have left without a review, from audits of a random share of them.

Each answer that the rules let pass is audited with the probability `audit_rate`, whatever its content. Let `passed` be
the number of wrong answers among all of these, and `detected` the number of those that were audited. With
q_k = (k - 1/2) * audit_rate / K,

    M = 1/K * sum over k of (q_k / audit_rate)^detected * ((1 - q_k) / (1 - audit_rate))^(passed - detected)

is a martingale of mean 1: the mixture of the likelihood ratios of K alternatives to the known rate. By Ville's
inequality it reaches 1/(1 - confidence) at any time with at most the probability 1 - confidence, so the bound holds at
all times together. Neither models nor scores nor the order of errors matter. (H. Robbins, "Statistical methods related
to the law of the iterated logarithm", Annals of Mathematical Statistics 41, 1970; J. Ville, "Étude critique de la
notion de collectif", 1939.)
"""

import math
from functools import lru_cache

ALTERNATIVES = 60


@lru_cache(maxsize=4096)
def upper_bound(detected: int, audit_rate: float, confidence: float) -> int:
    """Return the largest number of wrong answers that is compatible with `detected` of them.

    Args:
        detected: Wrong answers that audits detected, at least 0.
        audit_rate: Probability of an audit, between 0 and 1.
        confidence: Probability that the bound holds at all times, between 0 and 1.

    Raises:
        ValueError: A parameter is out of range.
    """
    if detected < 0 or not 0 < audit_rate < 1 or not 0 < confidence < 1:
        raise ValueError("`detected` must be at least 0; `audit_rate` and `confidence` must be between 0 and 1")
    threshold = -math.log1p(-confidence)
    lowest, step = detected, 1
    while _log_martingale(lowest + step, detected, audit_rate) < threshold:
        lowest, step = lowest + step, step * 2
    highest = lowest + step
    while highest - lowest > 1:
        middle = (lowest + highest) // 2
        if _log_martingale(middle, detected, audit_rate) < threshold:
            lowest = middle
        else:
            highest = middle
    return lowest


def _log_martingale(passed: int, detected: int, audit_rate: float) -> float:
    """Return the logarithm of M (see the module), which grows with `passed`."""
    logs = list[float]()
    for k in range(1, ALTERNATIVES + 1):
        alternative = (k - 0.5) * audit_rate / ALTERNATIVES
        missed = math.log1p(-alternative) - math.log1p(-audit_rate)
        logs.append(detected * math.log((k - 0.5) / ALTERNATIVES) + (passed - detected) * missed)
    largest = max(logs)
    return largest + math.log(sum(math.exp(log - largest) for log in logs) / ALTERNATIVES)
