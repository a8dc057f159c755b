"""Reservations: reserve the expected usage of a job under its limits before its model is called.

The reservation is settled with the real usage afterwards.
"""

import asyncio

import msgspec
import structlog

from signoff.core.estimate import estimate_tokens
from signoff.core.job import Job
from signoff.core.limits import Denial, Limit, Reservation, ReservationRequest
from signoff.core.price import NANO, dollars
from signoff.core.times import SECOND_US
from signoff.core.tokens import Usage
from signoff.errors import BudgetSpent, LimitReached, Overloaded
from signoff.runtime.attempt import Attempt
from signoff.work.inference.metering import cost_of_answer
from signoff.work.services import Services

RETRY_SECONDS = 0.5
SETTLE_SECONDS = 5.0
SCOPE_NAMES = {"all": "All callers together", "each": "Each user", "user": "This user", "token": "This token"}
log = structlog.get_logger()


async def reserve(services: Services, attempt: Attempt, *, request_id: str | None = None) -> None:
    """Reserve usage for the attempt under every limit that applies to its job, once.

    Limits apply to the steps of a run, and not to the run itself. `request_id` is the id of the reservation if it is
    not the only one of the job. Raises LimitReached, BudgetSpent, and Overloaded if the store does not answer.
    """
    if attempt.is_reserved or attempt.job.pipeline_id is not None:
        return
    if limits := await services.caches.limits.of(attempt.job):
        request = await _request_for(services, attempt.job, limits)
        if request_id is not None:
            request = msgspec.structs.replace(request, id=request_id)
        attempt.reservation = await _reserve(services, request)
    attempt.is_reserved = True


async def _reserve(services: Services, request: ReservationRequest) -> Reservation:
    task = services.runtime.background.spawn(_reserve_and_track(services, request))
    try:
        result = await asyncio.shield(task)
    except asyncio.CancelledError:
        services.runtime.background.spawn(_release_unclaimed(services, task))
        raise
    if isinstance(result, Denial):
        services.runtime.metrics.refused(result.kind)
        raise _limit_error(result)
    return result


async def release_reservation(services: Services, attempt: Attempt, *, reached_model: bool = True) -> None:
    """Settle the reservation of the attempt, if it has one, with what the attempt used, once; release the rest of it.

    Settling completes even if the current task is cancelled. It is retried while the store is away, but the caller
    waits for SETTLE_SECONDS at most. If no model was reached, the request itself does not count either.
    """
    if attempt.reservation is None or attempt.is_released:
        return
    attempt.is_released = True
    before, after, tokens, cost = attempt.initial_job, attempt.job, 0, 0
    if reached_model:
        tokens = after.prompt_tokens + after.completion_tokens - before.prompt_tokens - before.completion_tokens
        cost = (after.cost_nanodollars or 0) - (before.cost_nanodollars or 0)
    task = services.runtime.background.spawn(
        _settle(services, attempt.reservation, max(0, tokens), max(0, cost), reached_model=reached_model)
    )
    await asyncio.wait([task], timeout=SETTLE_SECONDS)


async def _request_for(services: Services, job: Job, limits: tuple[tuple[str, Limit], ...]) -> ReservationRequest:
    tokens = cost = 0
    if any(limit.counts_tokens for _, limit in limits):
        estimate = estimate_tokens(job.path, job.body)
        caps = [(limit.tokens_per_minute, limit.tokens_per_day, limit.tokens_per_month) for _, limit in limits]
        tokens = estimate.capped(min((cap for three in caps for cap in three if cap is not None), default=None))
        usage = Usage(prompt_tokens=estimate.prompt, completion_tokens=tokens - estimate.prompt, total_tokens=tokens)
        cost = await cost_of_answer(services, job, usage) or 0
    return ReservationRequest(
        id=job.id,
        limits=limits,
        tokens=tokens,
        cost=cost,
        lease_seconds=services.runtime.reservations.lease_seconds,
        user_id=job.user_id,
        token_id=job.token_id,
    )


async def _reserve_and_track(services: Services, request: ReservationRequest) -> Reservation | Denial:
    result = await services.store.limits.reserve(request)
    if isinstance(result, Reservation):
        services.runtime.reservations.add(result)
    return result


def _limit_error(denial: Denial) -> LimitReached:
    limit, seconds = denial.limit, None if denial.wait_us is None else denial.wait_us / SECOND_US
    model_text = "" if limit.model is None else f" of {limit.model}"
    limit_text = f"{SCOPE_NAMES[limit.scope]} may use {_allowance(denial)}{model_text}"
    if seconds is None:
        text = f"{limit_text}; this request needs more than that."
    elif denial.kind == "parallel":
        text = f"{limit_text}; wait for one of them to end."
    else:
        text = f"{limit_text}; retry in {seconds:.3f} s."
    kind = BudgetSpent if denial.is_budget else LimitReached
    return kind(text, retry_after_seconds=seconds, gauges=denial.gauges)


def _allowance(denial: Denial) -> str:
    """Return the limit that was reached, in words."""
    limit = denial.limit
    texts = {
        "requests": f"{limit.requests_per_minute} requests per minute",
        "tokens": f"{limit.tokens_per_minute} tokens per minute",
        "parallel": f"{limit.parallel} requests at a time",
        "tokens_per_day": f"{limit.tokens_per_day} tokens per day",
        "tokens_per_month": f"{limit.tokens_per_month} tokens per month",
        "cost_per_day": f"{dollars(limit.cost_per_day or 0, NANO)} dollars per day",
        "cost_per_month": f"{dollars(limit.cost_per_month or 0, NANO)} dollars per month",
    }
    return texts[denial.kind]


async def _release_unclaimed(services: Services, task: asyncio.Task[Reservation | Denial]) -> None:
    """Release a reservation whose caller was cancelled before it was made."""
    result = await task
    if isinstance(result, Reservation):
        await _settle(services, result, 0, 0, reached_model=False)


async def _settle(services: Services, reservation: Reservation, tokens: int, cost: int, *, reached_model: bool) -> None:
    """Settle the reservation, and retry while the store is away, as usage must not be lost."""
    # A renewal after the settlement would restore the reservation, so renewing stops first.
    services.runtime.reservations.drop(reservation)
    while True:
        try:
            await services.store.limits.settle(reservation, tokens=tokens, cost=cost, was_sent=reached_model)
        except Overloaded as error:
            log.warning("usage_settlement_deferred", reservation_id=reservation.request.id, error=repr(error))
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return
