"""Metering: tokens, cost and times of model calls, as stored with their jobs."""

from typing import Any

import msgspec

from signoff.core.dialects.answer import Answer, usage_of_body, usage_of_events
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


async def count_usage(services: Services, attempt: Attempt) -> None:
    """Add the usage, cost and times of the attempt to its job, once, and end the attempt.

    An attempt that called no model adds nothing. The usage of an answer that was cut is estimated up to its end.
    """
    if attempt.is_counted:
        return
    used = await _with_usage(services, attempt.job, attempt)
    if not attempt.is_counted:
        services.runtime.metrics.model_answered(attempt, attempt.job, used)
        attempt.job, attempt.is_counted = used, True


def record_wasted(services: Services, attempt: Attempt) -> None:
    """Record the usage of an attempt whose job had been lost meanwhile: the provider charges for it nevertheless.

    Store it in the background, apart from the job.
    """
    services.runtime.background.spawn(_record_wasted(services, attempt))


async def _record_wasted(services: Services, attempt: Attempt) -> None:
    reset = dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"), 0) | {"cost_nanodollars": None}
    wasted = await _with_usage(services, msgspec.structs.replace(attempt.job, **reset), attempt)
    if wasted.prompt_tokens or wasted.completion_tokens:
        await services.store.usage.record(wasted)


async def _with_usage(services: Services, job: Job, attempt: Attempt) -> Job:
    """Return `job` with the usage, cost and times of `attempt` added to those of earlier attempts."""
    attempt.end()
    if attempt.started_at is None:
        return job
    added = _clamp_usage(_usage_of(attempt))
    return msgspec.structs.replace(
        job,
        prompt_tokens=min(job.prompt_tokens + added.prompt_tokens, MAX_TOKENS),
        cached_tokens=min(job.cached_tokens + added.cached_tokens, MAX_TOKENS),
        completion_tokens=min(job.completion_tokens + added.completion_tokens, MAX_TOKENS),
        cost_nanodollars=await _total_cost(services, job, added, attempt),
        queued_us=_queued_us(attempt.initial_job, attempt.arrived_at, attempt.started_at),
        ttft_us=_elapsed_us(attempt.started_at, attempt.first_byte_at),
        generation_us=_elapsed_us(attempt.first_byte_at, attempt.ended_at),
    )


def _usage_of(attempt: Attempt) -> Usage | None:
    outcome, request_body = attempt.outcome, attempt.job.body
    if isinstance(outcome, Answer) and outcome.usage is not None:
        return outcome.usage
    if attempt.body is not None:
        return usage_of_body(attempt.body, request_body)
    return usage_of_events(attempt.events, request_body)


def _queued_us(job: Job, arrived_at: float, started_at: float) -> int | None:
    """Return the microseconds until the model was called, for a queued job until its first claim."""
    if job.is_waiting_call:
        return _elapsed_us(arrived_at, started_at)
    is_first = job.attempt == 1 and job.round == 0
    return job.updated_at - max(job.created_at, job.due_at) if is_first else job.queued_us


def usage_columns(job: Job) -> dict[str, Any]:
    """Return the usage columns of `job`, for the `changes` of a transition."""
    return {name: getattr(job, name) for name in _COLUMNS}


async def _total_cost(services: Services, job: Job, added: Usage, attempt: Attempt) -> int | None:
    """Return the cost of all attempts in nanodollars, a person's being 0; None if a price is not known."""
    before = job.cost_nanodollars
    if not attempt.has_begun:
        return before
    cost = 0 if attempt.awaits_person else await cost_of_answer(services, job, added)
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
    return tokens if 0 <= tokens <= MAX_TOKENS else max(0, min(tokens, MAX_TOKENS))


def _elapsed_us(begin: float | None, end: float | None) -> int | None:
    """Return the microseconds from `begin` to `end`, which are in seconds; None if either has not come."""
    return None if begin is None or end is None else max(0, round((end - begin) * 1_000_000))
