"""Versions of a prompt or pipeline with what each was used for: requests, their cost, and verdicts on the answers."""

from collections import defaultdict
from typing import Any

import msgspec

from signoff.core.access import Caller
from signoff.core.job import Job
from signoff.core.pipelines.composed import LibraryItem
from signoff.core.reviews.figures import FigureQuery, FigureTotals
from signoff.core.times import DAY_US
from signoff.core.usage import UsageQuery, UsageTotals
from signoff.work.admin.usage import usage_report
from signoff.work.jobs.search import JobSearch, search_jobs
from signoff.work.pipelines.history import costs_of_runs
from signoff.work.reviews.receipts import review_figures
from signoff.work.services import Services

DAYS = 31
MAX_RUNS = 500


class VersionUse(msgspec.Struct, frozen=True, kw_only=True):
    """Use of one version."""

    totals: UsageTotals | None = None
    """Requests and cost: of a prompt in the last DAYS, of a pipeline those of its latest runs that have ended."""
    figures: FigureTotals | None = None
    """Verdicts on the answers of the last DAYS; None without any, and for those who may not see them."""
    failed: int = 0
    """Number of runs of a pipeline that failed."""
    mean_us: int | None = None
    """Mean duration of the runs of a pipeline, in microseconds; None without any."""

    @property
    def changed_share(self) -> float | None:
        """Share of the verdicts that edited, sent back or rejected the answer; None without verdicts."""
        if self.figures is None or not self.figures.decisions:
            return None
        return (self.figures.edited + self.figures.redone + self.figures.rejected) / self.figures.decisions


async def prompt_use(services: Services, caller: Caller, name: str) -> dict[Any, VersionUse]:
    """Return the use of each version of a prompt: by all users for an admin, else by the caller."""
    query = UsageQuery(by=("prompt_version",), prompt=name, since=_since(services))
    rows, _ = await usage_report(services, caller, query)
    figures = await _figures_by_version(services, caller, name)
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
    costs = await costs_of_runs(services, caller, [job for jobs in runs.values() for job in jobs])
    figures = await _figures_by_version(services, caller, item.name)
    return {
        version: _use_of(runs.get(version, []), costs, figures.get(version)) for version in runs.keys() | figures.keys()
    }, result.examined


def _since(services: Services) -> int:
    return (services.clock() // DAY_US + 1 - DAYS) * DAY_US


async def _figures_by_version(services: Services, caller: Caller, name: str) -> dict[Any, FigureTotals]:
    if caller.role != "admin":
        return {}
    query = FigureQuery(by=("prompt_version",), prompt=name, since=_since(services))
    return {row.dimensions["prompt_version"]: row.totals for row in (await review_figures(services, caller, query))[0]}


def _use_of(runs: list[Job], costs: dict[str, UsageTotals], figures: FigureTotals | None) -> VersionUse:
    if not runs:
        return VersionUse(figures=figures)
    of_runs = [costs.get(run.id, UsageTotals()) for run in runs]
    totals = UsageTotals(
        jobs=len(runs),
        unpriced=sum(each.unpriced for each in of_runs),
        cost_nanodollars=sum(each.cost_nanodollars for each in of_runs),
    )
    mean_us = sum(job.updated_at - job.created_at for job in runs) // len(runs)
    failed = sum(job.status == "fail" for job in runs)
    return VersionUse(totals=totals, figures=figures, failed=failed, mean_us=mean_us)
