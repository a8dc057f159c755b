"""Periods of an error budget: their terms, which never change, and the gate that lets answers leave unreviewed.

A *pass* lets one answer leave without a review; processes take some at a time from the period in the database.
"""

import math
from collections.abc import Sequence

import msgspec

from signoff.core.reviews.answer_digest import Harmless
from signoff.core.reviews.budget_group import check_per, group_words
from signoff.core.reviews.catch_rate import lowest_catch_rate
from signoff.core.reviews.error_budget import upper_bound
from signoff.core.reviews.planted import CatchCount
from signoff.core.reviews.rules import Budget, PolicyDraft

# An allowance such as 0.29 * 100 is not exact in binary.
_ROUNDING = 1e-9
MAX_ANSWERS = 1_000_000_000
MIN_AUDIT_RATE = 0.001


class BudgetTerms(msgspec.Struct, frozen=True, kw_only=True):
    """Promise of an error budget, and how audits check it; a change starts a new period."""

    answers: int
    """Number of answers of a period that leave without a review."""
    share: float
    """Largest share of them that may be wrong, between 0 and 1."""
    confidence: float = 0.95
    """Probability that the promise is kept in a period, between 0 and 1."""
    audit_rate: float
    """Probability of an audit of an answer that the rules let pass, between 0 and 1."""
    harmless: tuple[Harmless, ...] = ()
    """Kinds of edits that do not make an answer wrong, besides those of whitespace."""
    per: str | None = None
    """Group that has a period of its own; see `rules.Budget`."""

    @property
    def allowed(self) -> int:
        """Largest number of wrong answers that may leave without a review in a period."""
        return math.floor(self.share * self.answers + _ROUNDING)


def check_terms(terms: BudgetTerms) -> None:
    """Raise ValueError if no answer could ever leave under `terms`; the message names the terms that work."""
    for name in ("share", "confidence", "audit_rate"):
        if not 0 < getattr(terms, name) < 1:
            raise ValueError(f"`budget.{name}` must be between 0 and 1, both excluded (got {getattr(terms, name):g}).")
    if not 1 <= terms.answers <= MAX_ANSWERS:
        raise ValueError(f"`budget.answers` must be from 1 to {MAX_ANSWERS} (got {terms.answers}).")
    if terms.audit_rate < MIN_AUDIT_RATE:
        raise ValueError(f"`budget.audit_rate` must be at least {MIN_AUDIT_RATE:g} (got {terms.audit_rate:g}).")
    undetected = upper_bound(0, terms.audit_rate, terms.confidence)
    if terms.allowed > undetected:
        return
    raise ValueError(
        f"`budget` allows {terms.allowed} wrong answers of {terms.answers}{_of_group(terms)}, but as many as "
        f"{undetected} can stay undetected by audits of {terms.audit_rate:.1%}. "
        f"Set `answers` to at least {least_answers(terms)}{_other_remedy(terms)}."
    )


def _of_group(terms: BudgetTerms) -> str:
    return "" if terms.per is None else f" of {group_words(terms.per)}"


def _other_remedy(terms: BudgetTerms) -> str:
    audit_rate = least_audit_rate(terms)
    return "" if audit_rate is None else f", or `audit_rate` to at least {audit_rate:g}"


def least_answers(terms: BudgetTerms) -> int:
    """Return the smallest number of answers with which the other terms work."""
    needed = upper_bound(0, terms.audit_rate, terms.confidence) + 1
    answers = max(1, math.ceil(needed / terms.share) - 1)
    while msgspec.structs.replace(terms, answers=answers).allowed < needed:
        answers += 1
    return answers


def least_audit_rate(terms: BudgetTerms) -> float | None:
    """Return the smallest audit rate, in steps of 0.1 %, with which the other terms work; None if none does."""
    lowest, highest = 0, 1000  # in thousandths; `highest` works, or is 1000
    while highest - lowest > 1:
        middle = (lowest + highest) // 2
        if terms.allowed >= upper_bound(0, middle / 1000, terms.confidence) + 1:
            highest = middle
        else:
            lowest = middle
    return None if highest == 1000 else highest / 1000


class BudgetPeriod(msgspec.Struct, frozen=True, kw_only=True):
    """A period of an error budget, with its counts."""

    policy: str
    """Name of the policy that has the budget."""
    number: int
    """Number of the period, from 1; the groups of a policy share the numbers."""
    terms: BudgetTerms
    """Terms of the whole period."""
    group: str | None = None
    """Group whose answers count; None if the budget is one for all."""
    version: int
    """Version of the policy at the start, or the newest one since with equal terms."""
    catch_rate: float | None = None
    """Lower confidence bound of the reviewers' catch rate at the start; None if no planted item had been judged."""
    delivered: int = 0
    """Answers that have left without a review."""
    outstanding: int = 0
    """Passes that processes have taken and not used yet."""
    audits: int = 0
    """Audits so far."""
    audits_open: int = 0
    """Audits without a verdict."""
    wrong: int = 0
    """Audits with the verdict that the answer is wrong."""
    started_at: int = 0
    """Time of the start, in microseconds since 1970, UTC."""
    ended_at: int | None = None
    """Time of the end; None for the present period."""

    @property
    def detection_rate(self) -> float:
        """Probability with which a wrong answer is detected: that of an audit, times the catch rate."""
        return self.terms.audit_rate * (1 if self.catch_rate is None else self.catch_rate)

    @property
    def bound_confidence(self) -> float:
        """Confidence of the bound; half of the error belongs to the catch rate if that was measured."""
        error = 1 - self.terms.confidence
        return 1 - (error if self.catch_rate is None else error / 2)

    @property
    def detected(self) -> int:
        """Audits that count as wrong: those with that verdict, and those without one."""
        return self.wrong + self.audits_open

    @property
    def undetected(self) -> int:
        """Largest number of wrong answers that may have left, with the confidence of the terms."""
        return largest_undetected(self, self.detected)

    @property
    def passes(self) -> int:
        """Number of further answers that may leave without a review now; the gate is open if there is one."""
        allowance = self.terms.allowed - self.undetected - self.outstanding
        return max(0, min(allowance, self.terms.answers - self.delivered - self.outstanding))

    @property
    def has_ended(self) -> bool:
        """True if as many answers have left as the terms say."""
        return self.delivered >= self.terms.answers


def largest_undetected(period: BudgetPeriod, detected: int) -> int:
    """Return the largest number of wrong answers that may have left if `detected` audits count as wrong."""
    if period.detection_rate < MIN_AUDIT_RATE / 10:  # reviewers who catch almost nothing: no bound is of use
        return period.terms.allowed + 1
    return upper_bound(detected, period.detection_rate, period.bound_confidence) - detected


def closing_detections(period: BudgetPeriod) -> int:
    """Return the number of wrong answers that audits must detect in all to close the gate; 0 if it never opens."""
    lowest, highest = -1, 1  # the gate is open after `lowest` detections, and closed after `highest`
    while largest_undetected(period, highest) < period.terms.allowed:
        lowest, highest = highest, highest * 2
    while highest - lowest > 1:
        middle = (lowest + highest) // 2
        if largest_undetected(period, middle) < period.terms.allowed:
            lowest = middle
        else:
            highest = middle
    return highest


def least_reviewed_share(error_share: float, allowed_share: float) -> float:
    """Return the share of the answers that must be looked at, whatever the method.

    Args:
        error_share: Share of the answers that are wrong before any review.
        allowed_share: Share of the unreviewed answers that may be wrong.
    """
    return max(0.0, (error_share - allowed_share) / (1 - allowed_share))


def claim_of(period: BudgetPeriod) -> str:
    """Return the promise of the budget in words, with its assumption."""
    terms = period.terms
    promise = (
        f"Of each {terms.answers:,} answers{_of_group(terms)} that leave without a review, at most {terms.allowed:,} "
        f"({100 * terms.share:.4g} %) are wrong, with a confidence of {100 * terms.confidence:g} %."
    )
    if period.catch_rate is None:
        return f"{promise} Assumption: reviewers catch every wrong answer that they see."
    return (
        f"{promise} Assumption: reviewers catch real errors at least as often as planted ones "
        f"(at least {100 * period.catch_rate:.3g} % of them), and independently of the audits."
    )


def first_period(policy: str, version: int, terms: BudgetTerms, counts: Sequence[CatchCount], now: int) -> BudgetPeriod:
    """Return the first period of a budget, which starts at `now` with what is known of the reviewers' catch rate."""
    return BudgetPeriod(
        policy=policy,
        number=1,
        terms=terms,
        version=version,
        catch_rate=_catch_rate(terms, counts),
        started_at=now,
    )


def next_period(
    period: BudgetPeriod, version: int, terms: BudgetTerms, counts: Sequence[CatchCount], now: int
) -> BudgetPeriod:
    """Return the period after `period`, of the same group, which starts at `now`."""
    first = first_period(period.policy, version, terms, counts, now)
    return msgspec.structs.replace(first, number=period.number + 1, group=period.group)


def _catch_rate(terms: BudgetTerms, counts: Sequence[CatchCount]) -> float | None:
    judged = sum(count.judged for count in counts)
    if judged == 0:
        return None
    return lowest_catch_rate(sum(count.caught for count in counts), judged, (1 - terms.confidence) / 2)


def terms_of(budget: Budget) -> BudgetTerms:
    """Return the terms of the budget of a policy."""
    return BudgetTerms(
        answers=budget.answers,
        share=budget.share,
        confidence=budget.confidence,
        audit_rate=budget.audit_rate,
        harmless=budget.harmless,
        per=budget.per,
    )


def check_budget(draft: PolicyDraft) -> None:
    """Raise ValueError if the error budget of a policy cannot work; the message says what to change."""
    if draft.budget is None:
        return
    check_terms(terms_of(draft.budget))
    check_per(draft.budget.per)
    if not 0 <= draft.budget.planted_rate <= 1:
        raise ValueError(f"`budget.planted_rate` must be from 0 to 1 (got {draft.budget.planted_rate:g}).")
    if any(action.on_deadline == "approve" for action in (*draft.rules, draft.default)):
        raise ValueError(
            "`on_deadline` must not be `approve` in a policy with a `budget`, as answers would leave that nobody saw "
            "and that the budget does not count; set `stay`, `reject` or `escalate`."
        )
