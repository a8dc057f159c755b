"""Periods of an error budget: which terms work, and when the gate is open."""

from __future__ import annotations

import re

import msgspec
import pytest

from signoff.core.reviews.budget_period import (
    BudgetPeriod,
    BudgetTerms,
    check_terms,
    claim_of,
    closing_detections,
    least_answers,
    least_audit_rate,
    least_reviewed_share,
)
from signoff.core.reviews.error_budget import upper_bound

TERMS = BudgetTerms(answers=10_000, share=0.02, confidence=0.95, audit_rate=0.1)


def period(**more: object) -> BudgetPeriod:
    return BudgetPeriod(**({"policy": "p", "number": 1, "version": 1, "terms": TERMS} | more))


def changed(terms: BudgetTerms = TERMS, **more: object) -> BudgetTerms:
    return msgspec.structs.replace(terms, **more)


@pytest.mark.parametrize(
    ("answers", "share", "allowed"), [(10_000, 0.02, 200), (100, 0.29, 29), (4200, 0.05, 210), (99, 0.01, 0)]
)
def test_the_allowance_is_the_share_of_the_answers_rounded_down(answers: int, share: float, allowed: int) -> None:
    assert changed(answers=answers, share=share).allowed == allowed


@pytest.mark.parametrize("audit_rate", [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.3])
def test_refused_terms_name_the_smallest_ones_that_work(share: float, audit_rate: float) -> None:
    terms = changed(answers=10, share=share, audit_rate=audit_rate)
    least = least_answers(terms)
    check_terms(changed(terms, answers=least))
    with pytest.raises(ValueError, match=re.escape(f"`answers` to at least {least}")):
        check_terms(changed(terms, answers=least - 1))
    rate = least_audit_rate(changed(terms, answers=least))
    assert rate is not None
    check_terms(changed(terms, answers=least, audit_rate=rate))
    if rate > 0.001:
        with pytest.raises(ValueError, match=f"`audit_rate` to at least {rate:g}"):
            check_terms(changed(terms, answers=least, audit_rate=rate - 0.001))


def test_the_remedy_names_no_audit_rate_where_none_works() -> None:
    with pytest.raises(ValueError, match=r"Set `answers` to at least \d+\.$"):
        check_terms(changed(answers=10, share=0.02))


@pytest.mark.parametrize(
    "wrong",
    [{"share": 0}, {"share": 1}, {"confidence": 1}, {"audit_rate": 0}, {"audit_rate": 1e-6}, {"answers": 0}],
    ids=str,
)
def test_terms_out_of_range_are_refused_with_their_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"budget.{next(iter(wrong))}"):
        check_terms(changed(**wrong))


def test_the_gate_closes_as_the_specification_says() -> None:
    # U(C) - C + n <= allowed, where n counts the next pass
    for detected in range(40):
        for outstanding in (0, 1, 50):
            now = period(wrong=detected // 2, audits_open=detected - detected // 2, outstanding=outstanding)
            is_open = upper_bound(detected, 0.1, 0.95) - detected + outstanding + 1 <= 200
            assert (now.passes > 0) == is_open
    assert period().passes == 200 - 42


def test_a_period_gives_no_more_passes_than_it_has_answers() -> None:
    assert period(delivered=9_990).passes == 10
    assert period(delivered=9_990, outstanding=9).passes == 1
    assert period(delivered=10_000).passes == 0
    assert period(delivered=10_000).has_ended


def test_verdicts_reopen_the_gate() -> None:
    closing = closing_detections(period())
    assert period(audits_open=closing).passes == 0
    assert period(audits_open=closing - 1, audits=closing).passes > 0
    assert period(wrong=closing).passes == 0
    assert period(audits=closing).passes > 0


def test_a_catch_rate_makes_the_bound_wider() -> None:
    perfect, measured = period(), period(catch_rate=0.8)
    assert measured.undetected == upper_bound(0, 0.1 * 0.8, 0.975)
    assert measured.undetected > perfect.undetected
    assert period(catch_rate=0.0).passes == 0
    assert closing_detections(period(catch_rate=0.0)) == 0


def test_the_claim_names_its_assumption() -> None:
    assert "10,000 answers" in claim_of(period())
    assert "at most 200" in claim_of(period())
    assert "catch every wrong answer" in claim_of(period())
    assert "planted" in claim_of(period(catch_rate=0.8))


def test_more_errors_than_allowed_must_be_looked_at() -> None:
    assert least_reviewed_share(0.02, 0.05) == 0
    assert least_reviewed_share(0.24, 0.05) == pytest.approx(0.2)
