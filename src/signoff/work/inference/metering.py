"""Spend: what asking a model took, in tokens, money and time, as it is kept with the job."""

from __future__ import annotations

from typing import Any

import msgspec

from signoff.core.answer import usage_so_far
from signoff.core.job import Job
from signoff.core.price import cost_of
from signoff.core.tokens import Usage
from signoff.runtime.attempt import Attempt
from signoff.work.services import Services

# What upstreams tell may be anything: with these bounds no call breaks the sums.
MOST_TOKENS = 1_000_000_000
MOST_NANODOLLARS = 10**15
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
    services: Services, job: Job, asking: Attempt, usage: Usage | None, *, queued_us: int | None = None
) -> Job:
    """`job` with what this asking took beside those before it.

    `usage` is the whole answer's, where there is one; of an answer that was cut counts what came.
    """
    asking.end()
    if asking.started_at is None:
        return job
    took = _bounded(usage or usage_so_far(asking.chunks, job.body))
    return msgspec.structs.replace(
        job,
        prompt_tokens=min(job.prompt_tokens + took.prompt_tokens, MOST_TOKENS),
        cached_tokens=min(job.cached_tokens + took.cached_tokens, MOST_TOKENS),
        completion_tokens=min(job.completion_tokens + took.completion_tokens, MOST_TOKENS),
        cost_nanodollars=await _cost(services, job, took, is_answered=bool(asking.chunks)),
        queued_us=job.queued_us if queued_us is None else queued_us,
        ttft_us=_between(asking.started_at, asking.first_chunk_at),
        generation_us=_between(asking.first_chunk_at, asking.ended_at),
    )


def record_wasted(services: Services, job: Job, asking: Attempt, usage: Usage | None = None) -> None:
    """Keeps what an asking took whose job was somebody else's by then, or nobody's: the model counted it too."""
    alone = dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"), 0) | {"cost_nanodollars": None}
    services.runtime.background.spawn(_keep(services, msgspec.structs.replace(job, **alone), asking, usage))


async def _keep(services: Services, job: Job, asking: Attempt, usage: Usage | None) -> None:
    wasted = await add_attempt(services, job, asking, usage)
    if wasted.prompt_tokens or wasted.completion_tokens:
        await services.store.usage.record(wasted)


def usage_columns(job: Job) -> dict[str, Any]:
    """The columns of what a job has taken, for the move that follows."""
    return {name: getattr(job, name) for name in _COLUMNS}


async def _cost(services: Services, job: Job, took: Usage, *, is_answered: bool) -> int | None:
    """What all askings cost, as long as all their prices were known."""
    before = job.cost_nanodollars
    if not is_answered:
        return before
    cost = await cost_of_answer(services, job, took)
    if cost is None or (before is None and job.prompt_tokens + job.completion_tokens > 0):
        return None
    return min((before or 0) + cost, MOST_NANODOLLARS)


async def cost_of_answer(services: Services, job: Job, usage: Usage) -> int | None:
    """The nanodollars of one answer of the job's model with this usage; None where nobody has said its price."""
    price = await services.caches.prices.at(job.target if job.model.endswith("*") else job.model, services.clock())
    return None if price is None else cost_of(price, usage)


def _bounded(usage: Usage | None) -> Usage:
    if usage is None:
        return Usage()
    return Usage(
        prompt_tokens=_within(usage.prompt_tokens),
        cached_tokens=_within(usage.cached_tokens),
        completion_tokens=_within(usage.completion_tokens),
    )


def _within(tokens: int) -> int:
    return max(0, min(tokens, MOST_TOKENS))


def _between(begin: float | None, end: float | None) -> int | None:
    """Microseconds; None where it did not come to that."""
    return None if begin is None or end is None else max(0, round((end - begin) * 1_000_000))
