"""Logistic regression with a ridge penalty, for a few columns.

The penalised log-likelihood is maximised by Newton's method, which is iteratively reweighted least squares.
(P. McCullagh and J. A. Nelder, "Generalized Linear Models", 2nd edition, 1989, section 4.4; S. le Cessie and
J. C. van Houwelingen, "Ridge estimators in logistic regression", Applied Statistics 41, 1992.)
"""

import math
from collections.abc import Sequence
from operator import mul

MAX_STEPS = 50
MAX_HALVINGS = 30
TOLERANCE = 1e-10


def fit_logistic(
    columns: Sequence[Sequence[float]], outcomes: Sequence[bool], weights: Sequence[float], penalty: float = 1.0
) -> tuple[float, list[float]]:
    """Return the intercept and the coefficients with which the log-odds are linear in the columns.

    Args:
        columns: Values of each variable, one for each observation; all of about the same scale.
        outcomes: Outcome of each observation, both of which occur.
        weights: Weight of each observation, above 0.
        penalty: The sum of the squared coefficients, times half of this, is taken off the log-likelihood; above 0. The
            intercept is free.

    Raises:
        ValueError: One of the outcomes does not occur.
    """
    if len(set(outcomes)) < 2:
        raise ValueError("`outcomes` must have both values")
    design = [[1.0] * len(outcomes), *columns]
    penalties = [0.0] + [penalty] * len(columns)
    point = [0.0] * len(design)
    value = _objective(design, point, outcomes, weights, penalties)
    for _ in range(MAX_STEPS):
        step = _newton_step(design, point, outcomes, weights, penalties)
        point, value, size = _move(design, point, step, value, (outcomes, weights, penalties))
        if size < TOLERANCE:
            break
    return point[0], point[1:]


def probability(log_odds: float) -> float:
    """Return the probability that has these log-odds."""
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    odds = math.exp(log_odds)
    return odds / (1 + odds)


def _newton_step(
    design: Sequence[Sequence[float]],
    point: Sequence[float],
    outcomes: Sequence[bool],
    weights: Sequence[float],
    penalties: Sequence[float],
) -> list[float]:
    chances = [probability(log_odds) for log_odds in _log_odds(design, point)]
    errors = [weight * (outcome - p) for weight, outcome, p in zip(weights, outcomes, chances, strict=True)]
    curvature = [weight * p * (1 - p) for weight, p in zip(weights, chances, strict=True)]
    slopes = [
        _dot(column, errors) - penalty * each for column, penalty, each in zip(design, penalties, point, strict=True)
    ]
    matrix = [[0.0] * len(design) for _ in design]
    for i, column in enumerate(design):
        weighted = list(map(mul, column, curvature))
        for j in range(i + 1):
            matrix[i][j] = matrix[j][i] = _dot(weighted, design[j]) + (penalties[i] if i == j else 0)
    matrix[0][0] += TOLERANCE  # so that the matrix is never singular where all probabilities are 0 or 1
    return _solve(matrix, slopes)


def _move(
    design: Sequence[Sequence[float]],
    point: Sequence[float],
    step: Sequence[float],
    value: float,
    data: tuple[Sequence[bool], Sequence[float], Sequence[float]],
) -> tuple[list[float], float, float]:
    """Return the point after the step, halved until the objective grows, its objective, and the size of the step."""
    share = 1.0
    for _ in range(MAX_HALVINGS):
        new = [each + share * change for each, change in zip(point, step, strict=True)]
        new_value = _objective(design, new, *data)
        if new_value >= value:
            return new, new_value, share * max(map(abs, step))
        share /= 2
    return list(point), value, 0.0


def _objective(
    design: Sequence[Sequence[float]],
    point: Sequence[float],
    outcomes: Sequence[bool],
    weights: Sequence[float],
    penalties: Sequence[float],
) -> float:
    signed = (each if outcome else -each for each, outcome in zip(_log_odds(design, point), outcomes, strict=True))
    likelihood = -_dot(weights, [max(-each, 0.0) + math.log1p(math.exp(-abs(each))) for each in signed])
    return likelihood - sum(penalty * each * each for penalty, each in zip(penalties, point, strict=True)) / 2


def _log_odds(design: Sequence[Sequence[float]], point: Sequence[float]) -> list[float]:
    return [_dot(row, point) for row in zip(*design, strict=True)]


def _dot(one: Sequence[float], two: Sequence[float]) -> float:
    return sum(map(mul, one, two))


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Return the solution of linear equations with a symmetric positive definite matrix, by Cholesky's method."""
    size = len(right)
    lower = [[0.0] * size for _ in right]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - _dot(lower[i][:j], lower[j][:j])
            lower[i][j] = math.sqrt(max(rest, TOLERANCE**2)) if i == j else rest / lower[j][j]
    forward = [0.0] * size
    for i in range(size):
        forward[i] = (right[i] - _dot(lower[i][:i], forward[:i])) / lower[i][i]
    solution = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(lower[k][i] * solution[k] for k in range(i + 1, size))
        solution[i] = (forward[i] - rest) / lower[i][i]
    return solution
