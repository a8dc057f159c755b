"""Named policies of a request: those that apply to it, and what they decide before its model is asked."""

from collections.abc import Sequence

import msgspec

from signoff.core.job import Job
from signoff.core.reviews.compiled import CompiledPolicy, Match, ruling_of
from signoff.core.reviews.policy import JobPolicy, PolicyVersion
from signoff.core.reviews.request_values import RequestContext, context_of, request_values
from signoff.core.reviews.ruling import Ruling
from signoff.core.reviews.stored_signals import storable_signals
from signoff.core.reviews.strictness import stricter, strictest_ruling
from signoff.errors import AnswerRejected
from signoff.work.services import Services

LOGPROBS = frozenset({"signals.logprob_mean", "signals.logprob_min"})


class PolicyAdmission(msgspec.Struct, frozen=True):
    """The named policies of a request, and what they decide before its model is asked."""

    policy: JobPolicy
    """Policy of the job, with the named ones."""
    ruling: Ruling | None = None
    """Ruling, if the request alone decides that the answer passes or is rejected."""
    is_cacheable: bool = True
    """True if the answer may be cached."""


async def govern(services: Services, context: RequestContext, policy: JobPolicy) -> PolicyAdmission:
    """Return what the policies of `policy`, and those that apply to the request now, say about it.

    A policy that can decide by the request alone does not look at the answer.
    """
    if services.caches.policies.is_empty and not policy.named:
        return PolicyAdmission(policy)
    index = await services.caches.policies.index()
    applying = [each.version for each in index.find_all(context.names, context.prompt)]
    policy = stricter(policy, JobPolicy(named=tuple(applying))) if set(applying) - set(policy.named) else policy
    if not policy.named:
        return PolicyAdmission(policy)
    compiled = [await services.caches.policies.version(each) for each in policy.named]
    known = [each for each in compiled if each is not None]
    if len(known) < len(compiled):  # a version that the store has lost might have held the answer
        return PolicyAdmission(msgspec.structs.replace(policy, is_judged=True, review="always"), is_cacheable=False)
    is_cacheable = all(each.is_cacheable for each in known)
    decided = [(each, match) for each in known if (match := _decide(each, context)) is not None]
    rejections = [(each, match) for each, match in decided if match.action.then == "reject"]
    is_passed = len(decided) == len(known) and all(match.action.then == "pass" for _, match in decided)
    policy = msgspec.structs.replace(policy, is_judged=not is_passed)
    if not rejections and (not is_passed or policy.may_hold):
        return PolicyAdmission(policy, is_cacheable=is_cacheable)
    rulings = [
        ruling_of(each.policy, match, storable_signals(request_values(context, each.reads)))
        for each, match in rejections or decided
    ]
    return PolicyAdmission(policy, strictest_ruling(rulings, policy), is_cacheable)


def _decide(compiled: CompiledPolicy, context: RequestContext) -> Match | None:
    return compiled.match_request({"request": request_values(context, compiled.reads)})


async def owner_email(services: Services, job: Job, versions: Sequence[PolicyVersion]) -> str:
    """Return the email of the owner of `job` if one of the policies reads it, else an empty text."""
    compiled = [await services.caches.policies.version(version) for version in versions]
    if not any(each is not None and "request.user" in each.reads for each in compiled):
        return ""
    user, _ = await services.store.people.user_with_token(job.user_id, job.token_id)
    return "" if user is None else user.email


async def govern_job(services: Services, job: Job, policy: JobPolicy) -> PolicyAdmission:
    """Return what `policy` and the policies that apply now say about a job that was admitted before."""
    if services.caches.policies.is_empty and not policy.named:
        return PolicyAdmission(policy)
    index = await services.caches.policies.index()
    applying = [each.version for each in index.find_all(context_of(job).names, job.prompt)]
    email = await owner_email(services, job, [*policy.named, *applying])
    return await govern(services, context_of(job, email), policy)


async def may_stand_in(services: Services, job: Job, name: str) -> bool:
    """Return True if the model `name` may answer a job that cannot be held: no policy of it may hold the answer."""
    if services.caches.policies.is_empty:
        return True
    context = msgspec.structs.replace(context_of(job), target=name, model=name, prompt=None)
    versions = [each.version for each in (await services.caches.policies.index()).find_all(context.names)]
    context = msgspec.structs.replace(context, user=await owner_email(services, job, versions))
    return not (await govern(services, context, job.policy)).policy.may_hold


async def needs_logprobs(services: Services, job: Job) -> bool:
    """Return True if a policy of `job` reads log-probabilities of its answer."""
    compiled = [await services.caches.policies.version(version) for version in job.policy.named]
    return any(each is not None and each.reads & LOGPROBS for each in compiled)


def check_not_rejected(job: Job) -> None:
    """Raise AnswerRejected, before the model is asked, if a policy rejects every answer to the request of `job`."""
    ruling = job.ruling
    if ruling is None or ruling.outcome != "reject":
        return
    error = AnswerRejected(ruling.message or "")
    error.code = ruling.code or error.code
    raise error
