"""Dry run: what a policy would have said about past answers, from what is stored. It asks no model and no webhook."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.reviews.compiled import CompiledPolicy, Match, policy_from_draft
from signoff.core.reviews.rules import PolicyDraft
from signoff.errors import BadRequest
from signoff.work.reviews.judge import match_answer
from signoff.work.reviews.library import check_policy, get_policy
from signoff.work.reviews.past_answers import MAX_LAST, PastAnswer, StoredSignals, past_answers
from signoff.work.services import Services


class DryRun(msgspec.Struct, kw_only=True):
    """Result of a dry run."""

    policy: str
    """Name of the policy."""
    answers: int = 0
    """Number of past answers that were judged."""
    examined: int = 0
    """Sum of `passed`, `consulted`, `held`, `rejected` and `skipped`."""
    skipped: int = 0
    """Number of past jobs of other targets, or without an answer of a model."""
    passed: int = 0
    """Answers that would have left at once, those of `audited` included."""
    audited: int = 0
    """Answers that would have left, but for those that a person audits."""
    consulted: int = 0
    """Answers about which another model would have been asked."""
    held: int = 0
    """Answers that would have been held."""
    rejected: int = 0
    """Answers that would have been rejected."""
    failed: int = 0
    """Answers among `held` for which a condition failed, such as one about a missing signal."""
    rules: dict[str, int] = {}
    """Answers by the position of the rule that matches; `default` for none."""
    reviewed: int = 0
    """Answers that a person has decided on."""
    wrong: int = 0
    """Answers among `reviewed` that were edited, rejected or sent back."""
    wrong_passed: int = 0
    """Answers among `wrong` that the policy would have let pass."""
    missing: dict[str, int] = {}
    """Number of answers, by signal, whose value is not stored, so that it counted as null."""


async def dry_run(
    services: Services, caller: Caller, name: str, *, last: int, draft: PolicyDraft | None = None
) -> DryRun:
    """Judge the `last` answers of the policy's target by `draft`, or by the stored policy if that is None.

    Raises Forbidden, NotFound, and BadRequest for a draft that is not valid.
    """
    check_admin(caller)
    if not 1 <= last <= MAX_LAST:
        raise BadRequest(f"`last` must be from 1 to {MAX_LAST} (got {last}).")
    if draft is None:
        compiled = CompiledPolicy(await get_policy(services, caller, name), is_stored=True)
    else:
        compiled = check_policy(services, policy_from_draft(draft, name))
    result = DryRun(policy=name, rules={}, missing={})
    async for answers in past_answers(services, compiled, last):
        result.skipped += not answers
        result.examined += max(1, len(answers))
        await _judge(services, compiled, answers, result)
    return result


async def _judge(services: Services, compiled: CompiledPolicy, answers: Sequence[PastAnswer], result: DryRun) -> None:
    """Count what the policy says about the answers of one job."""
    for answer in answers:
        signals = StoredSignals(services, answer)
        match = await match_answer(compiled, signals)
        _count(result, answer, match)
        for name in signals.missing:
            result.missing[name] = result.missing.get(name, 0) + 1


def _count(result: DryRun, answer: PastAnswer, match: Match) -> None:
    outcomes = Counter[str]({"passed": 0})
    match match.action.then:
        case "pass":
            outcomes["passed"] += 1
        case "audit":
            outcomes.update(["passed", "audited"])
        case "ask":
            outcomes["consulted"] += 1
        case "hold":
            outcomes["held"] += 1
        case "reject":
            outcomes["rejected"] += 1
    outcomes["failed"] += match.is_failure
    outcomes["answers"] += 1
    outcomes["reviewed"] += answer.is_reviewed
    outcomes["wrong"] += answer.is_wrong
    outcomes["wrong_passed"] += answer.is_wrong and outcomes["passed"] > 0
    for name, number in outcomes.items():
        setattr(result, name, getattr(result, name) + number)
    rule = "default" if match.rule is None else str(match.rule)
    result.rules[rule] = result.rules.get(rule, 0) + 1
