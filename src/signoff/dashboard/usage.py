"""The page of usage: requests, tokens and cost of a range, over time and by one dimension.

The figures are those of `/api/usage`, so the totals equal the sums of all rows of the range, not of one page.
"""

from urllib.parse import urlencode

from litestar import MediaType, Router, get
from litestar.params import FromQuery
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.usage import DAY_US, HOUR_US, Dimension, UsageQuery, UsageRow, UsageTotals
from signoff.core.wire import format_time
from signoff.dashboard.charts import Chart, Unit, column_chart, format_number
from signoff.dashboard.shell import USAGE, format_cost, page
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.work.admin.usage import usage_report
from signoff.work.services import Services

RANGES = {"1": "Last 24 hours", "7": "Last 7 days", "31": "Last 31 days"}
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


@get("/dashboard/usage", include_in_schema=False, media_type=MediaType.HTML)
async def show_usage(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    days: FromQuery[str] = "7",
    by: FromQuery[str] = "model",
) -> Template:
    """Show usage of the last `days`, by the dimension `by`: of all users for an admin, else of the caller."""
    chosen: Dimension = by if by in DIMENSIONS else "model"
    length = days if days in RANGES else "7"
    since = _since(services.clock(), int(length))
    dimensions: tuple[Dimension, ...] = ("prompt", "prompt_version") if chosen == "prompt_version" else (chosen,)
    query = UsageQuery(by=dimensions, since=since, limit=MAX_ROWS)
    rows, totals = await usage_report(services, caller, query)
    export = urlencode({"by": ",".join(dimensions), "since": format_time(since), "format": "csv"})
    return page(
        request,
        services,
        caller,
        "usage.html",
        USAGE.name,
        rows=[{"name": _name(row), "totals": row.totals} for row in rows],
        totals=totals,
        counts=await _counts(services, caller, since),
        charts=await _charts(services, caller, since, int(length)),
        ranges=RANGES,
        length=length,
        dimensions=DIMENSIONS,
        chosen=chosen,
        is_cut=len(rows) == MAX_ROWS,
        export=f"/api/usage?{export}",
    )


def _since(now: int, days: int) -> int:
    """Return the start of the range: a whole hour for a day, else midnight UTC of its first day."""
    unit = HOUR_US if days == 1 else DAY_US
    return (now // unit + 1) * unit - days * DAY_US


async def _counts(services: Services, caller: Caller, since: int) -> dict[str, int]:
    """Return the numbers of failed requests and of answers from the cache."""
    rows, _ = await usage_report(services, caller, UsageQuery(by=("status", "cache"), since=since))
    return {
        "failed": sum(row.totals.jobs for row in rows if row.dimensions["status"] == "fail"),
        "hits": sum(row.totals.jobs for row in rows if row.dimensions["cache"] == "hit"),
    }


async def _charts(services: Services, caller: Caller, since: int, days: int) -> list[Chart]:
    unit: Unit = "hour" if days == 1 else "day"
    size, number = (HOUR_US, 24) if days == 1 else (DAY_US, days)
    rows, _ = await usage_report(services, caller, UsageQuery(by=(unit,), since=since))
    by_time = {row.dimensions[unit]: row.totals for row in rows}
    times = [since + index * size for index in range(number)]
    totals = [by_time.get(at, UsageTotals()) for at in times]
    tokens = [each.prompt_tokens + each.completion_tokens for each in totals]
    return [
        column_chart("Requests", times, [each.jobs for each in totals], format_number, unit),
        column_chart("Tokens", times, tokens, format_number, unit),
        column_chart("Cost", times, [each.cost_nanodollars for each in totals], format_cost, unit),
    ]


def _name(row: UsageRow) -> str:
    values = [str(value) for value in row.dimensions.values() if value is not None]
    return " v".join(values) if values else "none"


router = Router("/", route_handlers=[show_usage])
