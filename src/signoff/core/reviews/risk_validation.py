"""Cross-validation of risk scores: how well scores tell wrong answers from right ones that they were not fitted to."""

from collections.abc import Sequence

import msgspec

from signoff.core.reviews.accuracy import Estimate, brier_score, roc_auc
from signoff.core.reviews.logistic import probability
from signoff.core.reviews.risk_score import LabelledAnswer, fit_score

FOLDS = 5


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy of a risk score in cross-validation."""

    auc: Estimate
    """Probability that a wrong answer has a higher score than a right one: 0.5 for a guess, 1 for certainty."""
    brier: Estimate
    """Mean squared error of the probability that an answer is wrong; lower is better."""
    brier_of_share: float
    """Mean squared error of a guess that gives each answer the overall share of wrong answers as its probability."""


def cross_validate(answers: Sequence[LabelledAnswer], signals: Sequence[str]) -> tuple[Validation, list[float]]:
    """Return the accuracy of scores, and the score of each answer, by a fit to the answers of the other folds.

    The folds have equal parts of the wrong and of the right answers, and each a part of every time.
    """
    folds = _folds(answers)
    scores = [0.0] * len(answers)
    for fold in range(FOLDS):
        score = fit_score([each for each, other in zip(answers, folds, strict=True) if other != fold], signals)
        for index, (answer, other) in enumerate(zip(answers, folds, strict=True)):
            if other == fold:
                # a value that no other fold lacks cannot be scored; the rule holds it
                value = score.of(answer.values)
                scores[index] = float("inf") if value is None else value
    outcomes, weights = [each.is_wrong for each in answers], [each.weight for each in answers]
    share = sum(each.weight for each in answers if each.is_wrong) / sum(weights)
    validation = Validation(
        auc=roc_auc(scores, outcomes, weights),
        brier=brier_score([probability(each) for each in scores], outcomes, weights),
        brier_of_share=share * (1 - share),
    )
    return validation, scores


def _folds(answers: Sequence[LabelledAnswer]) -> list[int]:
    """Return the fold of each answer."""
    counts, folds = {True: 0, False: 0}, list[int]()
    for answer in answers:
        folds.append(counts[answer.is_wrong] % FOLDS)
        counts[answer.is_wrong] += 1
    return folds
