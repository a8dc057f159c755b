"""Latencies and failures of models in the newest jobs; `usage.latency_report` has the latencies of whole hours."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.work.services import Services

MAX_EXAMINED = 1000
PAGE = 250
MAX_ERRORS = 3


class ModelLatency(msgspec.Struct, frozen=True, kw_only=True):
    """Latency and failures of a model in its newest jobs."""

    jobs: int
    """Number of jobs."""
    failed: int
    """Number of those that failed."""
    p50_us: int | None
    """Median time from the request to the end of the answer, in microseconds; None if nothing was timed."""
    p95_us: int | None
    """Time that 95 % of the answers did not exceed."""
    errors: tuple[tuple[str, int], ...]
    """Most frequent messages of failures, each with the number of its jobs."""


async def recent_latencies(services: Services, caller: Caller) -> tuple[dict[str, ModelLatency], int]:
    """Return the latencies by model, and the number of jobs that were looked at. Raises Forbidden."""
    check_admin(caller)
    by_model, examined, after_id = defaultdict[str, list[Job]](list), 0, None
    while examined < MAX_EXAMINED:
        page = await services.store.jobs.list(JobFilter(after_id=after_id, limit=PAGE, newest_first=True))
        for job in page:
            by_model[job.model].append(job)
        examined += len(page)
        if not page or not page.may_continue:
            break
        after_id = page[-1].id
    return {name: _latency(jobs) for name, jobs in by_model.items()}, examined


def _latency(jobs: Sequence[Job]) -> ModelLatency:
    times = sorted((job.ttft_us or 0) + job.generation_us for job in jobs if job.generation_us is not None)
    failures = [job.error.message for job in jobs if job.status == "fail" and job.error is not None]
    return ModelLatency(
        jobs=len(jobs),
        failed=len(failures),
        p50_us=percentile(times, 0.5),
        p95_us=percentile(times, 0.95),
        errors=tuple(Counter(failures).most_common(MAX_ERRORS)),
    )


def percentile(ordered: Sequence[int], share: float) -> int | None:
    """Return the smallest value that at least `share` of the ordered values do not exceed; None without values.

    >>> percentile([1, 2, 3, 4], 0.5), percentile([7], 0.95), percentile([], 0.5)
    (2, 7, None)
    """
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)] if ordered else None
