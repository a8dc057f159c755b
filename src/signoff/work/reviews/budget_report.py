"""Error budgets for admins: their figures, their restart, and planted items."""

import math
from collections.abc import Sequence

import msgspec

from signoff.core.access import Caller, check_admin, check_identified
from signoff.core.api_paths import parse_route
from signoff.core.reviews.budget_group import MAX_GROUPS
from signoff.core.reviews.budget_period import (
    BudgetPeriod,
    claim_of,
    closing_detections,
    first_period,
    largest_undetected,
    least_reviewed_share,
    next_period,
    terms_of,
)
from signoff.core.reviews.catch_rate import INTERVAL_ERROR, highest_catch_rate, lowest_catch_rate
from signoff.core.reviews.planted import CatchCount, PlantedItem
from signoff.core.reviews.rules import ReviewPolicy
from signoff.errors import BadRequest, NotFound
from signoff.work.reviews.library import no_policy
from signoff.work.services import Services

MAX_ITEM_BYTES = 1024 * 1024
MAX_POINTS = 40
MAX_ID = 2**31 - 1


class BudgetReport(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of the present period of an error budget, or of one group of it."""

    allowed: int
    """Largest number of wrong answers that may leave without a review in the period."""
    passed: int
    """Answers that have left without a review."""
    audits: int
    """Answers that were chosen for an audit."""
    audits_open: int
    """Audits without a verdict; they count as wrong."""
    wrong_found: int
    """Audits with the verdict that the answer is wrong."""
    bound: int
    """Largest number of wrong answers that may have left, with the confidence of the budget."""
    open: bool
    """True if answers may leave without a review now."""
    claim: str
    """The promise of the budget, with its assumption."""
    period: int
    """Number of the period."""
    answers: int
    """Number of answers with which the period ends."""
    outstanding: int
    """Passes that processes have taken and not used yet."""
    share: float | None
    """Largest share of the answers that have left that may be wrong; None before the first one."""
    closes_after: int
    """Number of audits that must find a wrong answer, in all, to close the gate."""
    closes_after_errors: int
    """Number of wrong answers among all that the rules let pass, at which that is to be expected."""
    error_share: float | None
    """Share of wrong answers among the audits with a verdict; None before the first one."""
    least_reviewed_share: float | None
    """Share of the answers that must be looked at with that many errors, whatever the method."""
    catch_rate: float | None
    """Lower bound of the reviewers' catch rate that the bound is computed with; None if none had been measured."""
    why: str
    """Reason why answers may leave now, or may not."""
    group: str | None = None
    """Group whose answers these are; None if the budget is one for all."""
    user: str | None = None
    """Email of the user whose answers these are; None for other groups."""


class BudgetGroups(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the groups of an error budget, with the figures of their present periods."""

    per: str
    """Kind of the groups; see `rules.Budget`."""
    claim: str
    """The promise of the budget, for each group."""
    groups: int
    """Number of groups that have a budget now."""
    most_groups: int
    """Largest number of groups; all answers of further ones are held."""
    data: list[BudgetReport]
    """The groups, by name."""
    next: str | None
    """`after` of the next page; None for the last one."""


class BudgetPoint(msgspec.Struct, frozen=True):
    """Remainder of an error budget after a number of finds."""

    finds: int
    """Audits that find a wrong answer, or have no verdict yet."""
    left: int
    """Wrong answers that may still leave before the gate closes; the gate is open while it is above 0."""


class CatchReport(msgspec.Struct, frozen=True, kw_only=True):
    """Planted items that a reviewer has judged, with an interval of 95 % for the share that they catch."""

    reviewer: str
    """E-mail address of the reviewer."""
    judged: int
    """Number of planted items that the reviewer has judged."""
    caught: int
    """Number of those that the reviewer did not approve."""
    lowest: float
    """Lower end of the interval, from 0 to 1."""
    highest: float
    """Upper end of the interval, from 0 to 1."""


async def report_budget(services: Services, caller: Caller, name: str, group: str | None = None) -> BudgetReport:
    """Return the figures of the budget of the policy `name`, or of one group of it, for an admin.

    Raises Forbidden, NotFound, and BadRequest if a group is named for a budget without groups, or none for one with.
    """
    check_admin(caller)
    policy = await _load(services, name)
    return await _with_user(services, await _period(services, policy, group))


async def list_groups(
    services: Services, caller: Caller, name: str, *, after: str | None, limit: int
) -> BudgetGroups | None:
    """Return a page of the groups of the budget, for an admin; None if it has none. Raises Forbidden, NotFound."""
    check_admin(caller)
    policy = await _load(services, name)
    if policy.budget is None or policy.budget.per is None:
        return None
    stored = await services.store.budgets.groups(name, after=after, limit=limit)
    # After a change of `per`, the groups of its former value stay stored until the next answer.
    newest = await services.store.budgets.period(name)
    are_present = newest is not None and newest.terms.per == policy.budget.per
    periods = [await _due_period(services, policy, each) for each in stored if are_present]
    return BudgetGroups(
        per=policy.budget.per,
        claim=claim_of(await _due_period(services, policy, newest)),
        groups=await services.store.budgets.group_count(name) if are_present else 0,
        most_groups=MAX_GROUPS,
        data=[await _with_user(services, each) for each in periods],
        next=stored[-1].group if len(stored) == limit and are_present else None,
    )


async def budget_curve(services: Services, caller: Caller, name: str, group: str | None = None) -> list[BudgetPoint]:
    """Return how the present period burns down: from no find to that which closes the gate.

    A long way is given in at most MAX_POINTS steps. Raises Forbidden, NotFound, BadRequest.
    """
    check_admin(caller)
    period = await _period(services, await _load(services, name), group)
    last = closing_detections(period)
    numbers = sorted({round(last * step / MAX_POINTS) for step in range(MAX_POINTS + 1)} | {period.detected})
    return [BudgetPoint(each, max(0, period.terms.allowed - largest_undetected(period, each))) for each in numbers]


async def restart_budget(services: Services, caller: Caller, name: str, group: str | None = None) -> None:
    """Start a new period of the budget of the policy `name`, or of one group of it.

    Without `group`, end the present periods of all groups; the next answer of each begins its next one.

    Raises Forbidden, NotFound, and BadRequest if a group is named for a budget without groups.
    """
    check_identified(caller)
    check_admin(caller)
    policy = await _load(services, name)
    if group is None and policy.budget is not None and policy.budget.per is not None:
        await services.store.budgets.restart_groups(name)
        return
    await _period(services, policy, group)
    await services.store.budgets.restart(name, group)


async def list_catch_rates(services: Services, caller: Caller, name: str) -> list[CatchReport]:
    """Return what each reviewer has caught of the planted items of a policy. Raises Forbidden, NotFound."""
    check_admin(caller)
    await _load(services, name)
    return [_catch_report(count) for count in await services.store.budgets.catch_counts(name)]


async def plant_item(services: Services, caller: Caller, item: PlantedItem) -> PlantedItem:
    """Add a planted item, and return it with its id. Raises Forbidden, NotFound, BadRequest."""
    check_identified(caller)
    check_admin(caller)
    await _load(services, item.policy)
    if parse_route(item.path) is None:
        raise BadRequest(f"`path` must be an endpoint such as /v1/chat/completions (got {item.path!r}).")
    if len(item.body) + len(item.response) > MAX_ITEM_BYTES:
        raise BadRequest(f"`payload` and `response` must have at most {MAX_ITEM_BYTES} bytes together.")
    return await services.store.budgets.plant(item)


async def list_planted(
    services: Services, caller: Caller, name: str, *, after_id: int, limit: int
) -> Sequence[PlantedItem]:
    """Return a page of the planted items of a policy. Raises Forbidden, NotFound."""
    check_admin(caller)
    await _load(services, name)
    return await services.store.budgets.planted(name, after_id=after_id, limit=limit)


async def drop_planted(services: Services, caller: Caller, name: str, item_id: int) -> None:
    """Remove a planted item, which reviewers then get no more. Raises Forbidden, NotFound."""
    check_identified(caller)
    check_admin(caller)
    if not 0 < item_id <= MAX_ID or not await services.store.budgets.drop_planted(name, item_id):
        raise NotFound(f"The policy {name!r} has no planted item {item_id}.")


async def _load(services: Services, name: str) -> ReviewPolicy:
    """Return the policy, which has a budget. Raises NotFound."""
    policy = await services.store.policies.get(name)
    if policy is None:
        raise no_policy(name)
    if policy.budget is None:
        raise NotFound(f"The policy {name!r} has no error budget; add `budget` to it.")
    return policy


async def _period(services: Services, policy: ReviewPolicy, group: str | None) -> BudgetPeriod:
    """Return the present period of a group, or else that of a budget for all. Raises NotFound, BadRequest."""
    per = policy.budget and policy.budget.per
    if (per is None) != (group is None):
        fault = "one for all; leave out `group`" if per is None else f"one for each {per}; name a `group`"
        raise BadRequest(f"The error budget of {policy.name!r} is {fault}.")
    period = await services.store.budgets.period(policy.name, group)
    if group is not None and (period is None or period.terms.per != per):
        raise NotFound(f"The error budget of {policy.name!r} has no group {group!r}; no answer has come under it yet.")
    return msgspec.structs.replace(await _due_period(services, policy, period), group=group)


async def _due_period(services: Services, policy: ReviewPolicy, period: BudgetPeriod | None) -> BudgetPeriod:
    """Return `period`; where the next answer starts another one, return that as it will begin."""
    terms = policy.budget and terms_of(policy.budget)
    if terms is not None and (period is None or (period.version < policy.version and period.terms != terms)):
        counts = await services.store.budgets.catch_counts(policy.name)
        new = (policy.version, terms, counts, services.clock())
        return first_period(policy.name, *new) if period is None else next_period(period, *new)
    assert period is not None  # noqa: S101 -- a policy with a budget has terms
    return period


async def _with_user(services: Services, period: BudgetPeriod) -> BudgetReport:
    """Return the figures of a period, with the email of the user whose answers it counts."""
    report = report_of(period)
    if period.terms.per != "user" or not (period.group or "").isdecimal():
        return report
    user = await services.store.people.user_by_id(int(period.group or 0))
    return msgspec.structs.replace(report, user=None if user is None else user.email)


def report_of(period: BudgetPeriod) -> BudgetReport:
    """Return the figures of a period."""
    decided, closes_after = period.audits - period.audits_open, closing_detections(period)
    error_share = period.wrong / decided if decided else None
    return BudgetReport(
        allowed=period.terms.allowed,
        passed=period.delivered,
        audits=period.audits,
        audits_open=period.audits_open,
        wrong_found=period.wrong,
        bound=period.undetected,
        open=period.passes > 0 or period.has_ended,
        claim=claim_of(period),
        period=period.number,
        answers=period.terms.answers,
        outstanding=period.outstanding,
        share=period.undetected / period.delivered if period.delivered else None,
        closes_after=closes_after,
        closes_after_errors=math.ceil(closes_after / max(period.detection_rate, 1e-9)),
        error_share=error_share,
        least_reviewed_share=None if error_share is None else least_reviewed_share(error_share, period.terms.share),
        catch_rate=period.catch_rate,
        why=_reason(period),
        group=period.group,
    )


def _reason(period: BudgetPeriod) -> str:
    known = f"up to {period.undetected:,} wrong answers may have left, and {period.terms.allowed:,} are allowed"
    if period.has_ended:
        return "The period is complete; the next answer starts a new one."
    if period.passes > 0:
        return f"The gate is open: {known}."
    if period.audits_open:
        return f"The gate is closed: {known}. {period.audits_open:,} audits without a verdict count as wrong."
    if period.outstanding:
        return f"The gate is closed for a moment: {known}. {period.outstanding:,} answers are on their way."
    return f"The gate is closed: {known}. An admin can start a new period once the cause of the errors is mended."


def _catch_report(count: CatchCount) -> CatchReport:
    numbers = (count.caught, count.judged, INTERVAL_ERROR)
    return CatchReport(
        reviewer=count.reviewer,
        judged=count.judged,
        caught=count.caught,
        lowest=lowest_catch_rate(*numbers),
        highest=highest_catch_rate(*numbers),
    )
