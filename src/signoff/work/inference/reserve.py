"""Limit: what a job will use is reserved before its model is asked, and settled once it is known what it used."""

from __future__ import annotations

import asyncio

import structlog

from signoff.core.estimate import estimate_tokens
from signoff.core.job import Job
from signoff.core.limits import SECOND, Denial, Limit, Reservation, ReservationRequest
from signoff.core.price import NANO, dollars
from signoff.core.tokens import Usage
from signoff.errors import BudgetSpent, LimitReached, Overloaded
from signoff.work.inference.metering import cost_of_answer
from signoff.work.services import Services

AGAIN_SECONDS = 0.5
SETTLE_SECONDS = 5.0
SCOPE_NAMES = {"all": "All callers together", "each": "Each user", "user": "This user", "token": "This token"}
log = structlog.get_logger()


async def reserve(services: Services, job: Job) -> Reservation | None:
    """Room for `job` under every limit that it has; None if it has none.

    Raises LimitReached, BudgetSpent, and Overloaded where nobody knows whether there is room.
    """
    limits = await services.caches.limits.of(job)
    if not limits:
        return None
    request = await _wish(services, job, limits)
    asking = services.runtime.background.spawn(_reserved(services, request))
    try:
        found = await asyncio.shield(asking)
    except asyncio.CancelledError:
        services.runtime.background.spawn(_undo(services, asking))
        raise
    if isinstance(found, Denial):
        raise _refused(found)
    return found


async def release_reservation(
    services: Services, reservation: Reservation, before: Job, after: Job, *, asked: bool = True
) -> None:
    """Counts what the job has taken meanwhile, and gives the rest back. Done even while the task is being cancelled.

    Whoever waits for that waits SETTLE_SECONDS at most: where the store is away, it is done once that is back.
    """
    tokens = after.prompt_tokens + after.completion_tokens - before.prompt_tokens - before.completion_tokens
    cost = (after.cost_nanodollars or 0) - (before.cost_nanodollars or 0)
    settling = services.runtime.background.spawn(
        _settle(services, reservation, max(0, tokens), max(0, cost), asked=asked)
    )
    await asyncio.wait([settling], timeout=SETTLE_SECONDS)


async def _wish(services: Services, job: Job, limits: tuple[tuple[str, Limit], ...]) -> ReservationRequest:
    tokens = cost = 0
    if any(limit.counts_tokens for _, limit in limits):
        about = estimate_tokens(job.path, job.body)
        told = [(limit.tokens_per_minute, limit.tokens_per_day, limit.tokens_per_month) for _, limit in limits]
        tokens = about.capped(min((most for three in told for most in three if most is not None), default=None))
        usage = Usage(prompt_tokens=about.prompt, completion_tokens=tokens - about.prompt, total_tokens=tokens)
        cost = await cost_of_answer(services, job, usage) or 0
    return ReservationRequest(
        id=job.id, limits=limits, tokens=tokens, cost=cost, lease_seconds=services.runtime.reservations.lease_seconds
    )


async def _reserved(services: Services, request: ReservationRequest) -> Reservation | Denial:
    found = await services.store.quotas.reserve(request)
    if isinstance(found, Reservation):
        services.runtime.reservations.add(found)
    return found


def _refused(denial: Denial) -> LimitReached:
    limit, seconds = denial.limit, None if denial.wait is None else denial.wait / SECOND
    of = "" if limit.model is None else f" of {limit.model}"
    told = f"{SCOPE_NAMES[limit.who]} may use {_most(denial)}{of}"
    if seconds is None:
        text = f"{told}; this request takes more than that."
    elif denial.kind == "parallel":
        text = f"{told}, and so many are under way."
    else:
        text = f"{told}; there is room in {seconds:.3f} s."
    kind = BudgetSpent if denial.is_budget else LimitReached
    return kind(text, retry_after_seconds=seconds, gauges=denial.gauges)


def _most(denial: Denial) -> str:
    """How much there may be of what there is not enough of, in words."""
    limit = denial.limit
    words = {
        "requests": f"{limit.requests_per_minute} requests in a minute",
        "tokens": f"{limit.tokens_per_minute} tokens in a minute",
        "parallel": f"{limit.parallel} requests at a time",
        "tokens_per_day": f"{limit.tokens_per_day} tokens in a day",
        "tokens_per_month": f"{limit.tokens_per_month} tokens in a month",
        "cost_per_day": f"{dollars(limit.cost_per_day or 0, NANO)} dollars in a day",
        "cost_per_month": f"{dollars(limit.cost_per_month or 0, NANO)} dollars in a month",
    }
    return words[denial.kind]


async def _undo(services: Services, asking: asyncio.Task[Reservation | Denial]) -> None:
    """Nobody waits for this reservation any more."""
    found = await asking
    if isinstance(found, Reservation):
        await _settle(services, found, 0, 0, asked=False)


async def _settle(services: Services, reservation: Reservation, tokens: int, cost: int, *, asked: bool) -> None:
    """Tries until the store takes it: what was used must be known."""
    services.runtime.reservations.drop(
        reservation
    )  # first: a room that is renewed behind its settling would be held again
    while True:
        try:
            await services.store.quotas.settle(reservation, tokens=tokens, cost=cost, asked=asked)
        except Overloaded as error:
            log.warning(
                "what a request used is counted when the store is back", job=reservation.request.id, error=repr(error)
            )
            await asyncio.sleep(AGAIN_SECONDS)
        else:
            return
