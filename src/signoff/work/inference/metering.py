"""Metering: tokens, cost and times of model calls, as stored with their jobs."""

from typing import Any

import msgspec

from signoff.core.answer import usage_so_far
from signoff.core.job import Job
from signoff.core.price import cost_of
from signoff.core.tokens import Usage
from signoff.runtime.attempt import Attempt
from signoff.work.services import Services

# Upstreams may report any number; with these bounds the sums fit their columns.
MAX_TOKENS = 1_000_000_000
MAX_NANODOLLARS = 10**15
_COLUMNS = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost_nanodollars",
    "queued_us",
    "ttft_us",
    "generation_us",
)


async def add_attempt(
    services: Services, job: Job, attempt: Attempt, usage: Usage | None, *, queued_us: int | None = None
) -> Job:
    """Return `job` with the usage, cost and times of `attempt` added to those of earlier attempts; end the attempt.

    Args:
        services: The dependencies, for the price of the model.
        job: The job with what its earlier attempts used.
        attempt: The attempt that has ended now; an attempt that never began adds nothing.
        usage: The usage of the whole answer; None for an answer that was cut, whose chunks are counted instead.
        queued_us: Microseconds before the call, None to leave those of the job.
    """
    attempt.end()
    if attempt.started_at is None:
        return job
    added = _clamp_usage(usage or usage_so_far(attempt.chunks, job.body))
    return msgspec.structs.replace(
        job,
        prompt_tokens=min(job.prompt_tokens + added.prompt_tokens, MAX_TOKENS),
        cached_tokens=min(job.cached_tokens + added.cached_tokens, MAX_TOKENS),
        completion_tokens=min(job.completion_tokens + added.completion_tokens, MAX_TOKENS),
        cost_nanodollars=await _total_cost(services, job, added, is_answered=bool(attempt.chunks)),
        queued_us=job.queued_us if queued_us is None else queued_us,
        ttft_us=_elapsed_us(attempt.started_at, attempt.first_chunk_at),
        generation_us=_elapsed_us(attempt.first_chunk_at, attempt.ended_at),
    )


def record_wasted(services: Services, job: Job, attempt: Attempt, usage: Usage | None = None) -> None:
    """Record the usage of an attempt whose job had been lost meanwhile: the provider charges for it nevertheless.

    Store it in the background, apart from the job.
    """
    reset = dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"), 0) | {"cost_nanodollars": None}
    services.runtime.background.spawn(_record_wasted(services, msgspec.structs.replace(job, **reset), attempt, usage))


async def _record_wasted(services: Services, job: Job, attempt: Attempt, usage: Usage | None) -> None:
    wasted = await add_attempt(services, job, attempt, usage)
    if wasted.prompt_tokens or wasted.completion_tokens:
        await services.store.usage.record(wasted)


def usage_columns(job: Job) -> dict[str, Any]:
    """Return the usage columns of `job`, for the `changes` of a transition."""
    return {name: getattr(job, name) for name in _COLUMNS}


async def _total_cost(services: Services, job: Job, added: Usage, *, is_answered: bool) -> int | None:
    """Return the cost of all attempts in nanodollars; None if a price is not known."""
    before = job.cost_nanodollars
    if not is_answered:
        return before
    cost = await cost_of_answer(services, job, added)
    if cost is None or (before is None and job.prompt_tokens + job.completion_tokens > 0):
        return None
    return min((before or 0) + cost, MAX_NANODOLLARS)


async def cost_of_answer(services: Services, job: Job, usage: Usage) -> int | None:
    """Return the cost in nanodollars of an answer of the job's model with this usage; None without a price."""
    price = await services.caches.prices.at(job.target if job.model.endswith("*") else job.model, services.clock())
    return None if price is None else cost_of(price, usage)


def _clamp_usage(usage: Usage | None) -> Usage:
    if usage is None:
        return Usage()
    return Usage(
        prompt_tokens=_clamp(usage.prompt_tokens),
        cached_tokens=_clamp(usage.cached_tokens),
        completion_tokens=_clamp(usage.completion_tokens),
    )


def _clamp(tokens: int) -> int:
    return max(0, min(tokens, MAX_TOKENS))


def _elapsed_us(begin: float | None, end: float | None) -> int | None:
    """Return the microseconds from `begin` to `end`, which are in seconds; None if either has not come."""
    return None if begin is None or end is None else max(0, round((end - begin) * 1_000_000))
