"""Versions of a prompt or pipeline with what each was used for: requests, cost and verdicts, or the latest runs."""

from collections import defaultdict
from typing import Any

import msgspec

from signoff.core.access import Caller
from signoff.core.job import Job
from signoff.core.pipelines.composed import LibraryItem
from signoff.core.reviews.figures import FigureQuery, FigureTotals
from signoff.core.usage import DAY_US, UsageQuery, UsageTotals
from signoff.work.admin.usage import usage_report
from signoff.work.jobs.search import JobSearch, search_jobs
from signoff.work.reviews.receipts import review_figures
from signoff.work.services import Services

DAYS = 31
MAX_RUNS = 500


class VersionUse(msgspec.Struct, frozen=True, kw_only=True):
    """Use of one version."""

    totals: UsageTotals | None = None
    """Requests and cost of a version of a prompt in the last DAYS; None for a pipeline."""
    figures: FigureTotals | None = None
    """Verdicts on answers of a prompt; None for a pipeline, and for those who may not see them."""
    runs: int = 0
    """Number of the latest runs of a pipeline that have ended."""
    failed: int = 0
    """Number of those that failed."""
    mean_us: int | None = None
    """Mean duration of those, in microseconds; None without any."""

    @property
    def changed_share(self) -> float | None:
        """Share of the verdicts that edited, sent back or rejected the answer; None without verdicts."""
        if self.figures is None or not self.figures.decisions:
            return None
        return (self.figures.edited + self.figures.redone + self.figures.rejected) / self.figures.decisions


async def prompt_use(services: Services, caller: Caller, name: str) -> dict[Any, VersionUse]:
    """Return the use of each version of a prompt: by all users for an admin, else by the caller."""
    since = (services.clock() // DAY_US + 1 - DAYS) * DAY_US
    rows, _ = await usage_report(services, caller, UsageQuery(by=("prompt_version",), prompt=name, since=since))
    figures = dict[Any, FigureTotals]()
    if caller.role == "admin":
        query = FigureQuery(by=("prompt_version",), prompt=name, since=since)
        figures = {
            row.dimensions["prompt_version"]: row.totals for row in (await review_figures(services, caller, query))[0]
        }
    totals = {row.dimensions["prompt_version"]: row.totals for row in rows}
    return {
        version: VersionUse(totals=totals.get(version), figures=figures.get(version)) for version in totals | figures
    }


async def pipeline_use(services: Services, caller: Caller, item: LibraryItem) -> tuple[dict[Any, VersionUse], int]:
    """Return the use of each version of a pipeline in its latest runs, and the number of jobs that were looked at."""
    result = await search_jobs(services, caller, JobSearch(target=item.name, limit=MAX_RUNS))
    runs = defaultdict[int | None, list[Job]](list)
    for job in result.jobs:
        if job.is_terminal and job.pipeline_id == item.id:
            runs[job.pipeline_version].append(job)
    return {version: _use_of(jobs) for version, jobs in runs.items()}, result.examined


def _use_of(jobs: list[Job]) -> VersionUse:
    mean_us = sum(job.updated_at - job.created_at for job in jobs) // len(jobs)
    return VersionUse(runs=len(jobs), failed=sum(job.status == "fail" for job in jobs), mean_us=mean_us)
