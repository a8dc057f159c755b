"""The error budget on the path of an answer: a pass, a coin, and an audit whose nature is hidden."""

from collections.abc import Sequence

import msgspec
import structlog

from signoff.core.job import Job
from signoff.core.reviews.budget_group import group_of
from signoff.core.reviews.budget_period import terms_of
from signoff.core.reviews.coin import KEY_PURPOSE, Coin, toss
from signoff.core.reviews.rules import Action, Budget, ReviewPolicy
from signoff.core.reviews.ruling import Ruling
from signoff.runtime.passes import Pass
from signoff.work.services import Services

_PLANT, _DISGUISE = b"signoff planted coin 1", b"signoff audit disguise 1"
log = structlog.get_logger()


async def apply_budget(services: Services, job: Job, ruling: Ruling, policies: Sequence[ReviewPolicy]) -> Job:
    """Return `job` with `ruling`, which the error budget may change from a pass to a hold.

    An answer is held if its coin chooses it, or while the gate is closed.

    Args:
        services: The dependencies.
        job: The job, whose model has answered.
        ruling: Ruling of the rules.
        policies: The named policies that apply to the job, in the versions that count.
    """
    budgeted = [policy for policy in policies if policy.budget is not None]
    if ruling.outcome == "pass" and (budgeted or ruling.audit):
        ruling = await _spend(services, job, ruling, budgeted)
        if ruling.outcome == "hold":
            ruling = _disguised(services, job, ruling, budgeted or policies)
    job = msgspec.structs.replace(job, ruling=ruling)
    if ruling.outcome != "hold" and budgeted and job.cache == "miss":
        job = msgspec.structs.replace(job, cache="bypass")  # an answer that nobody has approved must not be given again
    return job


async def _spend(services: Services, job: Job, ruling: Ruling, budgeted: Sequence[ReviewPolicy]) -> Ruling:
    """Return the ruling after the gate and the coin."""
    value = _toss(services, KEY_PURPOSE, job)
    if not budgeted:
        return _with_coin(ruling, Coin(value=value, look_rate=ruling.audit or 0))
    policy = budgeted[0]
    if len({each.name for each in budgeted}) > 1:  # an answer cannot count in two budgets
        return msgspec.structs.replace(ruling, outcome="hold")
    newest = max(budgeted, key=lambda each: each.version)
    pass_ = await _take_pass(services, job, newest)
    if pass_ is None:
        return msgspec.structs.replace(ruling, outcome="hold")
    return _with_coin(ruling, _coin(policy.name, pass_, value, ruling.audit or 0))


async def _take_pass(services: Services, job: Job, policy: ReviewPolicy) -> Pass | None:
    """Return a pass of the budget of the job's group; None while its gate is closed, or if it can have no budget."""
    if policy.budget is None:
        return None
    per = policy.budget.per
    group = None if per is None else group_of(job, per)
    if per is not None and group is None:
        return None
    return await services.runtime.passes.take(policy.name, group, policy.version, terms_of(policy.budget))


def _coin(policy: str, pass_: Pass, value: float, look_rate: float) -> Coin:
    return Coin(
        value=value,
        look_rate=max(look_rate, pass_.audit_rate),
        audit_rate=pass_.audit_rate,
        policy=policy,
        period=pass_.period,
        lease=pass_.lease,
    )


def _with_coin(ruling: Ruling, coin: Coin) -> Ruling:
    return msgspec.structs.replace(ruling, coin=coin, outcome="hold" if coin.is_look else "pass")


def held_without_pass(job: Job) -> Job:
    """Return `job` with the ruling of an answer that has no pass, or whose pass has lapsed: it is held."""
    ruling = job.ruling or Ruling(outcome="hold")
    return msgspec.structs.replace(job, ruling=msgspec.structs.replace(ruling, outcome="hold", coin=None))


def _disguised(services: Services, job: Job, ruling: Ruling, policies: Sequence[ReviewPolicy]) -> Ruling:
    """Return the ruling with the queue, priority and deadline of a rule that holds.

    So a reviewer cannot tell an audit from an answer that the rule has held.
    """
    rules: list[Action] = [rule for policy in policies for rule in (*policy.rules, policy.default)]
    holding = [rule for rule in rules if rule.then == "hold"]
    if not holding:
        return ruling
    rule = holding[int(_toss(services, _DISGUISE, job) * len(holding))]
    return msgspec.structs.replace(
        ruling,
        queue=rule.queue,
        priority=rule.priority,
        deadline_seconds=rule.deadline_seconds,
        on_deadline=rule.on_deadline,
        votes=rule.votes,
    )


async def plant_beside(services: Services, job: Job) -> None:
    """Present a planted item beside `job`, which is held now, with the probability that its error budget says.

    A failure is logged: nothing that happens after a coin was tossed may change what becomes of its answer.
    """
    try:
        versions = [await services.caches.policies.version(version) for version in job.policy.named]
        policies = [each.policy for each in versions if each is not None]
        budgets: list[tuple[str, Budget]] = [(each.name, each.budget) for each in policies if each.budget is not None]
        if not budgets:
            return
        policy, budget = budgets[-1]
        if _toss(services, _PLANT, job) < budget.planted_rate:
            secret = services.ids.new_id()
            actor, harmless = services.ids.actor, budget.harmless
            await services.store.budgets.present_planted(policy, job, secret, actor=actor, harmless=harmless)
    except Exception:
        log.exception("planting_failed", job_id=job.id)


def _toss(services: Services, purpose: bytes, job: Job) -> float:
    """Return the random number of the answer of `job` for one purpose."""
    return toss(services.adapters.vault.derive_key(purpose), job.id, job.round, job.attempt)
