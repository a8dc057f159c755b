"""Usage reports: queries by dimension, and totals of tokens, cost and times."""

from typing import Literal

import msgspec

from signoff.core.job import Job

Dimension = Literal[
    "model", "target", "prompt", "prompt_version", "user", "token", "door", "status", "cache", "hour", "day"
]
# Status of an attempt whose answer came after its worker had lost the lease.
STALE = "stale"


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A query for totals of the jobs that were created in a time range."""

    by: tuple[Dimension, ...] = ()
    """Dimensions to group by; none for one total."""
    since: int = 0
    """Start of the range, rounded down to a whole hour; microseconds since 1970, UTC."""
    until: int | None = None
    """End of the range, rounded up to a whole hour and excluded; None for no end."""
    user_id: int | None = None
    """Owner of the jobs; None for all users."""
    model: str | None = None
    """Name of the model; None for all models."""
    prompt: str | None = None
    """Name of the prompt; None for all requests."""
    by_cost: bool = False
    """True to order the rows by cost, the highest first; False to order them by the dimensions."""
    offset: int = 0
    """Number of rows to skip."""
    limit: int = 1000
    """Maximum number of rows."""


class UsageTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of some jobs. The times are sums over the `timed` jobs, as in `Job`."""

    jobs: int = 0
    """Number of jobs."""
    unpriced: int = 0
    """Number of jobs with tokens of a model without a price; their cost counts as 0."""
    timed: int = 0
    """Number of jobs whose request went to a model."""
    prompt_tokens: int = 0
    """Prompt tokens of all attempts."""
    cached_tokens: int = 0
    """Number of these that upstreams read from their own caches."""
    completion_tokens: int = 0
    """Completion tokens of all attempts."""
    cost_nanodollars: int = 0
    """Cost of all attempts."""
    queued_us: int = 0
    """Microseconds of waits for the first attempt."""
    ttft_us: int = 0
    """Microseconds until the first chunk."""
    generation_us: int = 0
    """Microseconds from the first chunk to the last one."""


def totals_of(job: Job) -> UsageTotals:
    """Return the totals of one job."""
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
    """A row of a usage report."""

    dimensions: dict[str, str | int | None]
    """Value of each dimension of the query; the email of a user, and the id of a token."""
    totals: UsageTotals
    """Totals of the jobs with these values."""
