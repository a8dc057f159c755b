"""The page of usage: requests, tokens and cost of a range, over time and by one dimension.

The figures are those of `/api/usage`, so the totals equal the sums of all rows of the range, not of one page.
"""

from collections import Counter, defaultdict
from typing import Any
from urllib.parse import urlencode

from litestar import MediaType, Router, get
from litestar.params import FromQuery
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.times import DAY_US, HOUR_US
from signoff.core.usage import STALE, Dimension, UsageQuery, UsageRow
from signoff.dashboard.charts import Chart, Unit, column_chart, format_number
from signoff.dashboard.shell import USAGE, format_cost, page
from signoff.dashboard.usage_times import Period, latency_view, review_view
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.work.admin.usage import usage_report
from signoff.work.services import Services

RANGES = {"1": "Last 24 hours", "yesterday": "Yesterday", "7": "Last 7 days", "31": "Last 31 days"}
DIMENSIONS: dict[Dimension, str] = {
    "model": "Model",
    "target": "Target",
    "prompt_version": "Prompt version",
    "user": "User",
    "token": "Token",
    "door": "Door",
    "status": "Status",
    "cache": "Cache",
}
MAX_ROWS = 100
# Parts of the longest range, times the values of status and of the use of the cache.
MAX_PARTS = 2000
CHARTED = ("jobs", "prompt_tokens", "completion_tokens", "cost_nanodollars")


@get("/dashboard/usage", include_in_schema=False, media_type=MediaType.HTML)
async def show_usage(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    days: FromQuery[str] = "7",
    by: FromQuery[str] = "model",
    measure: FromQuery[str] = "whole",
) -> Template:
    """Show usage of the last `days`, by the dimension `by`: of all users for an admin, else of the caller."""
    chosen: Dimension = by if by in DIMENSIONS else "model"
    length = days if days in RANGES else "7"
    since, until = _range(services.clock(), length)
    dimensions: tuple[Dimension, ...] = ("prompt", "prompt_version") if chosen == "prompt_version" else (chosen,)
    query = UsageQuery(by=dimensions, since=since, until=until, by_cost=True, limit=MAX_ROWS)
    rows, totals = await usage_report(services, caller, query)
    period = _period(since, until, length)
    over_time = await _over_time(services, caller, period)
    times = period.query
    export = urlencode({"by": ",".join(dimensions), **times, "format": "csv"})
    return page(
        request,
        services,
        caller,
        "usage.html",
        USAGE.name,
        rows=[{"name": _name(row), "totals": row.totals, "jobs": _jobs_link(row.dimensions, times)} for row in rows],
        totals=totals,
        all_jobs=urlencode(times | {"order": "cost"}),
        failed_jobs=urlencode(times | {"status": "fail"}),
        counts=_counts(over_time),
        charts=_charts(over_time, period),
        latency=await latency_view(services, caller, period, "first" if measure == "first" else "whole"),
        review=await review_view(services, caller, period),
        ranges=RANGES,
        length=length,
        dimensions=DIMENSIONS,
        chosen=chosen,
        is_cut=len(rows) == MAX_ROWS,
        export=f"/api/usage?{export}",
    )


def _range(now: int, length: str) -> tuple[int, int | None]:
    """Return the start and the end of a range: a whole hour for the last day, else midnight UTC."""
    today = now // DAY_US * DAY_US
    if length == "yesterday":
        return today - DAY_US, today
    return ((now // HOUR_US + 1) * HOUR_US if length == "1" else today + DAY_US) - int(length) * DAY_US, None


def _jobs_link(dimensions: dict[str, str | int | None], times: dict[str, str]) -> str | None:
    """Return the query of the page of jobs that lists the jobs of a row, the most expensive first.

    None if no filter selects them: those without a value, and attempts that came too late.
    """
    if any(value is None for value in dimensions.values()) or dimensions.get("status") == STALE:
        return None
    return urlencode({name: str(value) for name, value in dimensions.items()} | times | {"order": "cost"})


async def _over_time(services: Services, caller: Caller, period: Period) -> list[UsageRow]:
    """Return the usage of each part of the period, by status and use of the cache."""
    query = UsageQuery(by=(period.unit, "status", "cache"), since=period.since, until=period.until, limit=MAX_PARTS)
    return (await usage_report(services, caller, query))[0]


def _counts(rows: list[UsageRow]) -> dict[str, int]:
    """Return the numbers of failed requests and of answers from the cache."""
    return {
        "failed": sum(row.totals.jobs for row in rows if row.dimensions["status"] == "fail"),
        "hits": sum(row.totals.jobs for row in rows if row.dimensions["cache"] == "hit"),
    }


def _period(since: int, until: int | None, length: str) -> Period:
    unit: Unit = "hour" if length in {"1", "yesterday"} else "day"
    size, number = (HOUR_US, 24) if unit == "hour" else (DAY_US, int(length))
    return Period(since, until, unit, [since + index * size for index in range(number)])


def _charts(rows: list[UsageRow], period: Period) -> list[Chart]:
    unit, times = period.unit, period.times
    sums = defaultdict[Any, Counter[str]](Counter)
    for row in rows:
        sums[row.dimensions[unit]].update({name: getattr(row.totals, name) for name in CHARTED})
    of_times = [sums[at] for at in times]
    tokens = [each["prompt_tokens"] + each["completion_tokens"] for each in of_times]
    return [
        column_chart("Requests", times, [each["jobs"] for each in of_times], format_number, unit),
        column_chart("Tokens", times, tokens, format_number, unit),
        column_chart("Cost", times, [each["cost_nanodollars"] for each in of_times], format_cost, unit),
    ]


def _name(row: UsageRow) -> str:
    values = [str(value) for value in row.dimensions.values() if value is not None]
    return " v".join(values) if values else "none"


router = Router("/", route_handlers=[show_usage])
