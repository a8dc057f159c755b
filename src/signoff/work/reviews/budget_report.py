"""Error budgets for admins: their figures, their restart, and planted items."""

import math
from collections.abc import Sequence

import msgspec

from signoff.core.access import Caller, check_admin, check_identified
from signoff.core.endpoints import parse_route
from signoff.core.reviews.budget_period import (
    BudgetPeriod,
    claim_of,
    closing_detections,
    first_period,
    largest_undetected,
    least_reviewed_share,
    terms_of,
)
from signoff.core.reviews.catch_rate import INTERVAL_ERROR, highest_catch_rate, lowest_catch_rate
from signoff.core.reviews.planted import CatchCount, PlantedItem
from signoff.core.reviews.rules import ReviewPolicy
from signoff.errors import BadRequest, NotFound
from signoff.work.services import Services

MAX_ITEM_BYTES = 1024 * 1024
MAX_POINTS = 40
MAX_ID = 2**31 - 1


class BudgetReport(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of the present period of an error budget."""

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


class BudgetPoint(msgspec.Struct, frozen=True):
    """Remainder of an error budget after a number of finds."""

    finds: int
    """Audits that find a wrong answer, or have no verdict yet."""
    left: int
    """Wrong answers that may still leave before the gate closes; the gate is open while it is above 0."""


class CatchReport(msgspec.Struct, frozen=True, kw_only=True):
    """Planted items that a reviewer has judged, with an interval of 95 % for the share that they catch."""

    reviewer: str
    judged: int
    caught: int
    lowest: float
    highest: float


async def report_budget(services: Services, caller: Caller, name: str) -> BudgetReport:
    """Return the figures of the budget of the policy `name`, for an admin. Raises Forbidden, NotFound."""
    check_admin(caller)
    policy = await _load(services, name)
    return report_of(await _period(services, policy))


async def budget_curve(services: Services, caller: Caller, name: str) -> list[BudgetPoint]:
    """Return how the present period burns down: from no find to that which closes the gate. Raises Forbidden, NotFound.

    A long way is given in at most MAX_POINTS steps.
    """
    check_admin(caller)
    period = await _period(services, await _load(services, name))
    last = closing_detections(period)
    numbers = sorted({round(last * step / MAX_POINTS) for step in range(MAX_POINTS + 1)} | {period.detected})
    return [BudgetPoint(each, max(0, period.terms.allowed - largest_undetected(period, each))) for each in numbers]


async def restart_budget(services: Services, caller: Caller, name: str) -> BudgetReport:
    """Start a new period of the budget of the policy `name`, and return its figures. Raises Forbidden, NotFound."""
    check_identified(caller)
    check_admin(caller)
    policy = await _load(services, name)
    await services.store.budgets.restart(name)
    return report_of(await _period(services, policy))


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
        raise NotFound(f"There is no policy {name!r}.")
    if policy.budget is None:
        raise NotFound(f"The policy {name!r} has no error budget; add `budget` to it.")
    return policy


async def _period(services: Services, policy: ReviewPolicy) -> BudgetPeriod:
    """Return the present period; where the next answer starts one, return that as it will begin."""
    period, terms = await services.store.budgets.period(policy.name), policy.budget and terms_of(policy.budget)
    if terms is not None and (period is None or (period.version < policy.version and period.terms != terms)):
        counts = await services.store.budgets.catch_counts(policy.name)
        first = first_period(policy.name, policy.version, terms, counts, services.clock())
        return first if period is None else msgspec.structs.replace(first, number=period.number + 1)
    assert period is not None  # noqa: S101 -- a policy with a budget has terms
    return period


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
