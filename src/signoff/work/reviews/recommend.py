"""Recommendation of a rule that holds answers like those that people found wrong. It is a draft: nothing is saved."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.reviews.accuracy import Estimate, weighted_share
from signoff.core.reviews.compiled import CompiledPolicy, Match, policy_from_draft
from signoff.core.reviews.risk_score import (
    LabelledAnswer,
    RiskScore,
    SignalValue,
    expression_of,
    fit_score,
    scorable_signals,
)
from signoff.core.reviews.risk_validation import Validation, cross_validate
from signoff.core.reviews.rules import PolicyDraft, ReviewPolicy, Rule
from signoff.errors import BadRequest, Conflict
from signoff.work.reviews.judge import match_answer
from signoff.work.reviews.library import check_policy, get_policy
from signoff.work.reviews.past_answers import MAX_LAST, PastAnswer, StoredSignals, past_answers
from signoff.work.services import Services

MIN_WRONG = MIN_RIGHT = 20
CAUGHT_SHARE = 0.8
# A signal that is not stored for more of the answers says too little about those to come.
MAX_UNKNOWN_SHARE = 0.1
# Shares of the answers that come to the rule; a threshold is shown for each.
HELD_SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_STOPS = frozenset({"hold", "reject", "ask"})


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold of the rule, from which on it holds, and what would come of it."""

    threshold: float
    """Score from which on an answer is held."""
    held: int
    """Past answers that the draft holds, also by its other rules; as many as in a dry run."""
    held_share: float
    """Share of these among the past answers."""
    caught: Estimate
    """Share of the wrong answers that do not pass, by scores that were fitted without them."""


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """A draft of a policy with a rule that was fitted to what people decided, and how good it is."""

    policy: str
    """Name of the policy."""
    answers: int
    """Past answers that were examined."""
    reviewed: int
    """Answers with a decision of a person that the rule was fitted to."""
    wrong: int
    """Answers among `reviewed` that were rejected, sent back or edited."""
    random: int
    """Answers among `reviewed` that a coin chose for a person; each stands for all those that it was chosen from."""
    error_share: Estimate
    """Share of wrong answers, with each answer of `random` counted as the number that it stands for."""
    validation: Validation
    """Accuracy of scores that were fitted without the answers they are held against."""
    score: RiskScore
    """The score of the rule."""
    left_out: dict[str, str]
    """Signals that the score does not use, with the reason."""
    thresholds: tuple[Threshold, ...]
    """Thresholds to choose from."""
    threshold: float
    """Threshold of the draft: it holds the least that catches the wanted share of the wrong answers."""
    draft: PolicyDraft
    """The policy with the rule at `threshold`."""
    cautions: tuple[str, ...]
    """Reasons why the figures may be wrong."""


class _AssessedAnswer(msgspec.Struct, frozen=True):
    """A past answer, as the policy treats it."""

    values: dict[str, SignalValue]
    unknown: frozenset[str]
    match: Match
    is_reviewed: bool
    is_wrong: bool
    weight: float
    is_random: bool

    @property
    def comes_to_rule(self) -> bool:
        """True if no rule of the policy decides about it, so that the new one would."""
        return self.match.rule is None


async def recommend(
    services: Services, caller: Caller, name: str, *, last: int = MAX_LAST, caught: float = CAUGHT_SHARE
) -> Recommendation:
    """Return a draft of the policy `name` with a rule that is fitted to what people decided on its `last` answers.

    Raises Forbidden, NotFound, BadRequest for a parameter out of range, and Conflict if too few answers were decided.
    """
    check_admin(caller)
    if not 1 <= last <= MAX_LAST:
        raise BadRequest(f"`last` must be from 1 to {MAX_LAST} (got {last}).")
    if not 0 < caught <= 1:
        raise BadRequest(f"`caught` must be above 0 and up to 1 (got {caught:g}).")
    policy = await get_policy(services, caller, name)
    if policy.default.then == "reject":
        raise Conflict("The `default` of the policy rejects, so no answer is left for a rule; let it pass or hold.")
    assessed = await _read(services, policy, last)
    fitted = _fitting(assessed)
    names, left_out = _usable(policy, fitted)
    answers = [LabelledAnswer(each.values, each.is_wrong, each.weight) for each in fitted]
    # The fits take up to seconds of processor time.
    score = await asyncio.to_thread(fit_score, answers, names)
    validation, scores = await asyncio.to_thread(cross_validate, answers, names)
    used = {term.signal for term in score.terms}
    left_out |= {signal: "adds nothing to the signals of the score" for signal in names if signal not in used}
    thresholds = _thresholds(assessed, score, fitted, scores)
    threshold = _chosen(thresholds, caught)
    return Recommendation(
        policy=name,
        answers=len(assessed),
        reviewed=len(fitted),
        wrong=sum(each.is_wrong for each in fitted),
        random=sum(each.is_random for each in fitted),
        error_share=weighted_share([each.is_wrong for each in fitted], [each.weight for each in fitted]),
        validation=validation,
        score=score,
        left_out=left_out,
        thresholds=thresholds,
        threshold=threshold,
        draft=draft_at(services, policy, score, threshold),
        cautions=tuple(_cautions(policy, assessed, fitted)),
    )


def draft_at(services: Services, policy: ReviewPolicy, score: RiskScore, threshold: float) -> PolicyDraft:
    """Return the policy with the rule at a threshold: it holds what would pass, or passes what would be held.

    Raises BadRequest if the policy has no room for a further rule.
    """
    is_lower = f"{expression_of(score)} < {threshold!r}"
    is_held = policy.default.then == "hold"
    # Both rules hold an answer without a score.
    rule = Rule(if_=is_lower, then="pass") if is_held else Rule(if_=f"!({is_lower})", then="hold")
    members: dict[str, Any] = {field: getattr(policy, field) for field in PolicyDraft.__struct_fields__}
    members["rules"] = (*policy.rules, rule)
    draft = PolicyDraft(**members)
    check_policy(services, policy_from_draft(draft, policy.name))
    return draft


async def _read(services: Services, policy: ReviewPolicy, last: int) -> list[_AssessedAnswer]:
    """Return the past answers of the policy's target, newest first."""
    compiled, assessed = CompiledPolicy(policy, is_stored=True), list[_AssessedAnswer]()
    async for answers in past_answers(services, compiled, last):
        assessed += [await _assess(services, compiled, answer) for answer in answers]
    return assessed


async def _assess(services: Services, compiled: CompiledPolicy, answer: PastAnswer) -> _AssessedAnswer:
    match = await match_answer(compiled, StoredSignals(services, answer))
    signals, coin = StoredSignals(services, answer), answer.coin
    return _AssessedAnswer(
        values=await _values(signals, compiled.policy, _candidates(compiled.policy)),
        unknown=frozenset(signals.missing),
        match=match,
        is_reviewed=answer.is_reviewed,
        is_wrong=answer.is_wrong,
        weight=1 if coin is None else 1 / coin.look_rate,
        is_random=coin is not None,
    )


async def _values(signals: StoredSignals, policy: ReviewPolicy, names: Sequence[str]) -> dict[str, SignalValue]:
    """Return the values of signals; what cannot be read is no number, and holds the answer as in an evaluation."""
    try:
        values = await signals.values(policy, names)
    except (ValueError, RecursionError):
        if len(names) == 1:
            return {names[0]: math.nan}
        each = [await _values(signals, policy, [name]) for name in names]
        return {name: value for values in each for name, value in values.items()}
    return {name: _value_of(values, name) for name in names}


def _value_of(values: Mapping[str, Any], name: str) -> SignalValue:
    root, _, field = name.partition(".")
    value: Any = values[root][field] if field else values[root]
    return value if isinstance(value, bool | int | float) else None


def _candidates(policy: ReviewPolicy) -> list[str]:
    """Return the signals that a rule of the policy can read as numbers."""
    return [name for name in scorable_signals() if name != "signals.judge" or policy.judge is not None]


def _fitting(assessed: Sequence[_AssessedAnswer]) -> list[_AssessedAnswer]:
    """Return the answers to fit to: those that come to the rule if enough of them were decided, or else all.

    Raises Conflict if too few were decided.
    """
    decided = [each for each in assessed if each.is_reviewed]
    for answers in ([each for each in decided if each.comes_to_rule], decided):
        wrong = sum(each.is_wrong for each in answers)
        if wrong >= MIN_WRONG and len(answers) - wrong >= MIN_RIGHT:
            return answers
    wrong = sum(each.is_wrong for each in decided)
    raise Conflict(
        f"A recommendation needs {MIN_WRONG} answers that people found wrong and {MIN_RIGHT} that they found right, "
        f"and there are {wrong} and {len(decided) - wrong} among the newest {len(assessed)}. Let people decide on more."
    )


def _usable(policy: ReviewPolicy, answers: Sequence[_AssessedAnswer]) -> tuple[list[str], dict[str, str]]:
    """Return the names of the signals to fit to, and the others with the reason. Raises Conflict if there is none."""
    names, left_out = list[str](), dict[str, str]()
    for name in _candidates(policy):
        unknown = sum(name in each.unknown for each in answers)
        if unknown > MAX_UNKNOWN_SHARE * len(answers):
            left_out[name] = f"not stored for {unknown} of {len(answers)} answers; a rule that reads it changes that"
        elif len({each.values[name] for each in answers}) == 1:
            left_out[name] = "is the same for all answers"
        else:
            names.append(name)
    if not names:
        raise Conflict("No signal differs between the answers that people decided on; add one, such as a `judge`.")
    return names, left_out


def _thresholds(
    assessed: Sequence[_AssessedAnswer], score: RiskScore, fitted: Sequence[_AssessedAnswer], scores: Sequence[float]
) -> tuple[Threshold, ...]:
    """Return the thresholds to choose from, each once, those that hold least first.

    Args:
        assessed: All past answers.
        score: The score of the rule.
        fitted: The answers that it was fitted to.
        scores: Scores of these, each by a fit without it.
    """
    coming = [score.of(each.values) for each in assessed if each.comes_to_rule]
    ordered = sorted((each for each in coming if each is not None and not math.isnan(each)), reverse=True)
    places = [math.ceil(share * len(ordered)) - 1 for share in HELD_SHARES]
    if not ordered:
        raise Conflict("The rules of the policy decide on all past answers; narrow one, to leave some for a rule.")
    # Rounded down, so that the answer at the place is held.
    values = dict.fromkeys(math.floor(ordered[max(0, place)] * 1e6) / 1e6 for place in places)
    wrong = [(each, at) for each, at in zip(fitted, scores, strict=True) if each.is_wrong]
    rows = list[Threshold]()
    for value in values:
        held = sum(each.match.action.then == "hold" for each in assessed if not each.comes_to_rule)
        held += sum(each is None or not each < value for each in coming)
        caught = [not at < value if each.comes_to_rule else each.match.action.then in _STOPS for each, at in wrong]
        share = weighted_share(caught, [each.weight for each, _ in wrong])
        rows.append(Threshold(threshold=value, held=held, held_share=held / len(assessed), caught=share))
    return tuple(rows)


def _chosen(thresholds: Sequence[Threshold], caught: float) -> float:
    enough = [each.threshold for each in thresholds if each.caught.value >= caught]
    return enough[0] if enough else thresholds[-1].threshold


def _cautions(
    policy: ReviewPolicy, assessed: Sequence[_AssessedAnswer], fitted: Sequence[_AssessedAnswer]
) -> list[str]:
    """Return, in words, why the figures may be wrong."""
    chosen = sum(each.is_random for each in fitted)
    first = (
        f"Only {len(fitted):,} of {len(assessed):,} answers have a decision of a person that counts here. Of these, "
        f"{chosen:,} were chosen by chance, and stand for the answers that passed."
    )
    if chosen < len(fitted):
        first += " The others were held for a reason, and may differ from those that passed."
    cautions = [first]
    if not chosen:
        cautions[0] += " Without any that were chosen by chance, the figures say nothing about answers that pass today."
    if not all(each.comes_to_rule for each in fitted):
        cautions.append(
            "Too few answers that come to the rule were decided, so it is fitted to those of other rules too."
        )
    if policy.budget is None:
        cautions.append("The policy has no error budget. Add `budget`, so that audits prove what the rule lets pass.")
    cautions.append("Reviewers are taken to be right, and the answers to come to be like those of the past.")
    return cautions
