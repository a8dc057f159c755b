"""Judgement: what the policies of a job say about an answer that has come, before anything of it leaves."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec
import structlog

from signoff.core.dialects.answer import Answer
from signoff.core.job import Job
from signoff.core.reviews.compiled import HOLD, CompiledPolicy, Match, ruling_of
from signoff.core.reviews.logprobs import without_logprobs
from signoff.core.reviews.rules import ReviewPolicy
from signoff.core.reviews.ruling import Ruling
from signoff.core.reviews.strictness import stricter, strictest_ruling
from signoff.errors import ModelNotFound
from signoff.runtime.attempt import Attempt
from signoff.work.inference.ownership import names_held_object
from signoff.work.reviews.budget import apply_budget, held_without_pass
from signoff.work.reviews.policies import owner_email
from signoff.work.reviews.signals import AnswerSignals
from signoff.work.services import Perform, Services

AskOther = Callable[[str], Awaitable[bool]]
"""A function that asks the model with this name too; True if its answer has replaced that of the attempt."""
log = structlog.get_logger()


class _Judgement(NamedTuple):
    """The action of one policy on an answer."""

    compiled: CompiledPolicy
    match: Match
    signals: AnswerSignals


async def judge(services: Services, attempt: Attempt, perform: Perform, ask_other: AskOther) -> None:
    """Give the job of `attempt` the ruling of its policies on its answer; change nothing if the job cannot be held.

    The strictest of all that applies counts. If a policy, a budget or the store fails, the answer is held.
    Log-probabilities that only the policies wanted are taken out of the answer.
    """
    if not isinstance(attempt.outcome, Answer) or not attempt.job.policy.may_hold:
        return
    try:
        attempt.job = await _judged_job(services, attempt, perform, ask_other)
    except Exception:
        log.exception("policy_failed", job_id=attempt.job.id)
        attempt.job = held_without_pass(attempt.job)
    _take_out_logprobs(attempt)


async def _judged_job(services: Services, attempt: Attempt, perform: Perform, ask_other: AskOther) -> Job:
    """Return the job of `attempt` with its ruling. The model of a rule that asks another one is asked first."""
    judgements = await _judge_answer(services, attempt, perform)
    other_model = _model_to_ask(judgements)
    if other_model is not None and await ask_other(other_model):  # once more, with the other answer
        judgements = await _judge_answer(services, attempt, perform)
    rulings = [ruling_of(each.compiled.policy, each.match, each.signals.seen) for each in judgements]
    ruling = strictest_ruling(rulings, attempt.job.policy) if rulings else None
    if ruling is None or (ruling.outcome == "pass" and await _must_hold(services, attempt.job)):
        ruling = msgspec.structs.replace(ruling, outcome="hold") if ruling is not None else Ruling(outcome="hold")
    return await apply_budget(services, attempt.job, ruling, await _policies_of(services, attempt.job))


def _take_out_logprobs(attempt: Attempt) -> None:
    if attempt.wants_logprobs and isinstance(attempt.outcome, Answer):
        attempt.outcome = msgspec.structs.replace(attempt.outcome, body=without_logprobs(attempt.outcome.body))


async def _judge_answer(services: Services, attempt: Attempt, perform: Perform) -> list[_Judgement]:
    """Return what each named policy says, also one of the model that has answered; nothing if one is lost."""
    assert isinstance(attempt.outcome, Answer)  # noqa: S101 -- the caller has checked it
    job = attempt.job
    if job.model != attempt.initial_job.model and job.pipeline_id is None:
        job = attempt.job = await _under_policies_of(services, job)
    email = await owner_email(services, job, job.policy.named)
    signals = AnswerSignals(services, job, attempt.outcome, email, perform)
    judgements = list[_Judgement]()
    for version in job.policy.named:
        compiled = await services.caches.policies.version(version)
        if compiled is None:
            log.error("policy_version_lost", job_id=job.id, policy=version.name, version=version.version)
            return []
        judgements.append(_Judgement(compiled, await match_answer(compiled, signals), signals))
    return judgements


def _model_to_ask(judgements: Sequence[_Judgement]) -> str | None:
    """Return the model that a rule asks before it decides; None if none does, or another policy withholds the answer.

    Of several, it is the model of the policy that came last.
    """
    actions = [each.match.action for each in judgements]
    if any(action.then in {"hold", "reject"} for action in actions):
        return None
    return next((action.ask for action in reversed(actions) if action.ask is not None), None)


async def match_answer(compiled: CompiledPolicy, signals: AnswerSignals) -> Match:
    """Return the first rule that matches, or the default; a match that holds if a condition fails."""
    for number, condition in enumerate(compiled.conditions):
        reads = frozenset[str]() if condition is None else condition.reads
        try:
            values = await signals.values(compiled.policy, reads)
        except Exception as error:  # noqa: BLE001 -- whatever fails, a person looks
            log.warning("policy_signals_failed", policy=compiled.policy.name, rule=number, error=repr(error))
            return Match(HOLD, number, is_failure=True)
        match = compiled.match_rule(number, values)
        if match is not None:
            return match
    return Match(compiled.policy.default)


async def _must_hold(services: Services, job: Job) -> bool:
    """Return True if a passed answer is held nevertheless.

    The model or its door requires a review, or it depends on a held answer.
    """
    return job.policy.review == "always" or await names_held_object(services, job)


async def _policies_of(services: Services, job: Job) -> list[ReviewPolicy]:
    """Return the named policies of the job, for their error budgets."""
    compiled = [await services.caches.policies.version(version) for version in job.policy.named]
    return [each.policy for each in compiled if each is not None]


async def _under_policies_of(services: Services, job: Job) -> Job:
    """Return the job under the policies of the model that has answered, besides its own."""
    try:
        model = await services.caches.models.find(job.model)
    except ModelNotFound:
        model = None
    review = "never" if model is None else model.review or "never"
    index = await services.caches.policies.index()
    named = tuple(each.version for each in index.find_all((job.model,)))
    present = msgspec.structs.replace(services.rules.policy, review=review, named=named, is_judged=True)
    policy = stricter(job.policy, present)
    return msgspec.structs.replace(job, policy=policy)
