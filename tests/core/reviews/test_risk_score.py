"""Risk scores: what they learn from decisions, and the expressions that compute them in conditions of policies."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import cel
import msgspec
import pytest

from signoff.core.reviews.conditions import Condition
from signoff.core.reviews.logistic import probability
from signoff.core.reviews.risk_score import (
    MAX_TERMS,
    LabelledAnswer,
    RiskScore,
    RiskTerm,
    SignalValue,
    expression_of,
    fit_score,
    scorable_signals,
)
from signoff.core.reviews.risk_validation import cross_validate

SIGNALS = ("answer.length", "signals.logprob_mean", "signals.schema_ok", "request.tokens")


def true_log_odds(values: dict[str, SignalValue]) -> float:
    """Return the log-odds by which the simulated reviewers find an answer wrong."""
    logprob, schema_ok = values["signals.logprob_mean"], values["signals.schema_ok"]
    assert values["answer.length"] is not None
    return (
        -2.0
        + 0.01 * values["answer.length"]
        + (0.5 if logprob is None else -1.5 * logprob)
        + (0.0 if schema_ok is None or schema_ok else 1.0)
    )


def simulated(number: int, seed: int, *, looks: float = 1) -> list[LabelledAnswer]:
    """Return decisions of simulated reviewers; of short answers they see only the share `looks`, chosen by coins."""
    chance, answers = random.Random(seed), list[LabelledAnswer]()
    while len(answers) < number:
        values: dict[str, SignalValue] = {
            "answer.length": chance.randrange(200),
            "signals.logprob_mean": None if chance.random() < 0.2 else -chance.random() * 2,
            "signals.schema_ok": chance.choice((True, False, None)),
            "request.tokens": chance.randrange(10_000),
        }
        is_wrong = chance.random() < probability(true_log_odds(values))
        rate = looks if chance.random() < 0.5 else 1.0
        if chance.random() < rate:
            answers.append(LabelledAnswer(values, is_wrong, 1 / rate))
    return answers


def by_root(values: dict[str, Any]) -> dict[str, Any]:
    """Return values by root and field, as conditions get them."""
    roots: dict[str, Any] = {}
    for name, value in values.items():
        root, _, field = name.partition(".")
        if field:
            roots.setdefault(root, {})[field] = value
        else:
            roots[root] = value
    return roots


def evaluated(score: RiskScore, values: dict[str, Any]) -> float:
    result = cel.evaluate(expression_of(score), by_root(values))
    assert isinstance(result, float)
    return result


@pytest.mark.parametrize("looks", [1, 0.25], ids=["all", "a share"])
def test_the_score_finds_what_the_reviewers_go_by(looks: float) -> None:
    score = fit_score(simulated(6_000, 3, looks=looks), SIGNALS)
    terms = {term.signal: term for term in score.terms}
    assert terms["answer.length"].coefficient == pytest.approx(0.01, rel=0.2)
    assert terms["signals.logprob_mean"].coefficient == pytest.approx(-1.5, rel=0.15)
    assert abs(terms["request.tokens"].coefficient) * 10_000 < 0.4
    errors = [abs((score.of(each.values) or 0) - true_log_odds(dict(each.values))) for each in simulated(500, 4)]
    assert sum(errors) / len(errors) < 0.2


@pytest.mark.parametrize("seed", range(5))
def test_the_expression_gives_the_same_score(seed: int) -> None:
    answers = simulated(300, seed)
    score = fit_score(answers, SIGNALS)
    chance = random.Random(seed)
    edges: list[dict[str, SignalValue]] = [
        {"answer.length": 10**15, "signals.logprob_mean": -1e308, "signals.schema_ok": True, "request.tokens": -5},
        {"answer.length": 0, "signals.logprob_mean": 1e308, "signals.schema_ok": None, "request.tokens": 2**62},
        {"answer.length": 3, "signals.logprob_mean": -0.0, "signals.schema_ok": False, "request.tokens": 1},
    ]
    for values in (*(dict(each.values) for each in chance.sample(answers, 100)), *edges):
        assert evaluated(score, values) == pytest.approx(score.of(values), abs=1e-9)


def test_the_longest_expression_is_a_condition() -> None:
    names = sorted(scorable_signals(), key=len, reverse=True)[:MAX_TERMS]
    numbers = {"coefficient": -1.23456e-05, "missing": -1.23456e-05}
    kinds = scorable_signals()
    ends = {"lowest": -1.23456e-05, "highest": 1.23456e-05}
    terms = [RiskTerm(signal=name, **(numbers if kinds[name] == "bool" else numbers | ends)) for name in names]
    score = RiskScore(intercept=-1.23456e-05, terms=tuple(terms))
    condition = Condition(f"!({expression_of(score)} < -1.234567)")
    assert condition.reads == set(names)
    assert condition.is_met(by_root(dict.fromkeys(names))) == (not (score.of({}) or 0) < -1.234567)


def test_a_value_that_was_never_missing_has_no_score_without_it() -> None:
    answers = [
        msgspec.structs.replace(each, values={**each.values, "answer.length": 5 * each.is_wrong})
        for each in simulated(200, 1)
    ]
    score = fit_score(answers, ["answer.length"])
    assert score.of({"answer.length": 5}) is not None
    assert score.of({"answer.length": None}) is None
    with pytest.raises((RuntimeError, TypeError), match=r"double|overload"):
        evaluated(score, {"answer.length": None})


@pytest.mark.parametrize("strange", [1e308, -1e308, math.inf, math.nan, 10**300])
@pytest.mark.parametrize("share", [0.005, 0.3])
def test_huge_values_and_values_that_are_no_numbers_break_no_fit(strange: float, share: float) -> None:
    answers = simulated(1_000, 7)
    few = round(share * len(answers))
    answers[:few] = [
        msgspec.structs.replace(each, values={**each.values, "request.tokens": strange}) for each in answers[:few]
    ]
    score = fit_score(answers, SIGNALS)
    assert all(math.isfinite(number) for term in score.terms for number in numbers_of(term))
    errors = [abs((score.of(each.values) or 0) - true_log_odds(dict(each.values))) for each in simulated(300, 8)]
    assert sum(errors) / len(errors) < 0.7


def numbers_of(term: RiskTerm) -> Sequence[float]:
    ends = (term.coefficient, term.lowest, term.highest, term.missing)
    return [each for each in ends if each is not None]


def test_few_decisions_have_few_terms() -> None:
    chance = random.Random(1)
    answers = [
        LabelledAnswer({name: chance.random() for name in scorable_signals()}, number % 5 == 0) for number in range(100)
    ]
    assert len(fit_score(answers, list(scorable_signals())).terms) == 4


def test_validation_is_no_better_than_a_guess_where_nothing_is_to_be_learned() -> None:
    chance, inside, runs = random.Random(2), 0, 40
    for _ in range(runs):
        answers = [
            LabelledAnswer({name: chance.random() for name in SIGNALS if name != "signals.schema_ok"}, number % 4 == 0)
            for number in range(120)
        ]
        validation, scores = cross_validate(answers, ["answer.length", "signals.logprob_mean", "request.tokens"])
        inside += validation.auc.lowest <= 0.5
        assert len(scores) == 120
        assert validation.brier.value > validation.brier_of_share - 0.02
    assert inside >= 0.9 * runs


def test_validation_says_how_well_the_score_tells_wrong_from_right() -> None:
    validation, _ = cross_validate(simulated(1_000, 5), SIGNALS)
    assert 0.65 < validation.auc.lowest < validation.auc.value < validation.auc.highest < 0.9
    assert validation.brier.value < validation.brier_of_share
