"""What was used, in sums: by which dimensions it can be asked for, and what a sum holds."""

from __future__ import annotations

from typing import Literal

import msgspec

from signoff.core.job import Job

Dimension = Literal[
    "model", "target", "prompt", "prompt_version", "user", "token", "door", "status", "cache", "hour", "day"
]
HOUR_US = 3600 * 1_000_000
DAY_US = 24 * HOUR_US
# The status of an asking whose answer came when its job was somebody else's already.
STALE = "stale"


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to sum up, and by what. Times are when jobs were made: microseconds since 1970, the end excluded.

    Both are moved to whole hours. `user_id` None means everybody's.
    """

    by: tuple[Dimension, ...] = ()
    since: int = 0
    until: int | None = None
    user_id: int | None = None
    model: str | None = None
    offset: int = 0
    limit: int = 1000


class UsageTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens, cost and times of some jobs. `unpriced` are those that used tokens of a model without a price.

    Times are sums over the `timed` jobs, whose model was asked.
    """

    jobs: int = 0
    unpriced: int = 0
    timed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_nanodollars: int = 0
    queued_us: int = 0
    ttft_us: int = 0
    generation_us: int = 0


def totals_of(job: Job) -> UsageTotals:
    """What one job took."""
    return UsageTotals(
        jobs=1,
        unpriced=int(job.cost_nanodollars is None and job.prompt_tokens + job.completion_tokens > 0),
        timed=int(job.generation_us is not None),
        prompt_tokens=job.prompt_tokens,
        cached_tokens=job.cached_tokens,
        completion_tokens=job.completion_tokens,
        cost_nanodollars=job.cost_nanodollars or 0,
        queued_us=job.queued_us or 0,
        ttft_us=job.ttft_us or 0,
        generation_us=job.generation_us or 0,
    )


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One sum, and what it is of: a value for each dimension that was asked for; a user's email, a token's id."""

    dimensions: dict[str, str | int | None]
    totals: UsageTotals
