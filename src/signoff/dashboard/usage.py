"""The page of usage: requests, tokens and cost of a range, over time and by one dimension.

The figures are those of `/api/usage`, so the totals equal the sums of all rows of the range, not of one page.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple
from urllib.parse import urlencode

import msgspec
from litestar import MediaType, Router, get
from litestar.params import FromQuery
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.price import NANO
from signoff.core.usage import DAY_US, HOUR_US, Dimension, UsageQuery, UsageRow, UsageTotals
from signoff.core.wire import format_time
from signoff.dashboard.shell import SECOND, USAGE, format_cost, page
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.work.admin.usage import usage_report
from signoff.work.services import Services

Unit = Literal["hour", "day"]
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
WIDTH, BASE, TOP = 400, 150, 10
MAX_LABELS = 6


class Column(NamedTuple):
    """Bar of a chart; lengths are in units of the chart, which is WIDTH wide."""

    x: float
    width: float
    y: float
    height: float
    label: str
    """Time of the bar below the axis; empty where there is no room."""
    title: str
    """Time and value, as a person reads them."""


class Chart(NamedTuple):
    """Bars over time."""

    title: str
    highest: str
    """Value at the upper line."""
    columns: list[Column]
    data: str
    """JSON for the script: `times` in seconds since 1970 and their `labels`, `values`, their `titles` and `prefix`."""


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
        _chart("Requests", times, [each.jobs for each in totals], _number, unit),
        _chart("Tokens", times, tokens, _number, unit),
        _chart("Cost", times, [each.cost_nanodollars for each in totals], format_cost, unit),
    ]


def _chart(title: str, times: Sequence[int], values: Sequence[int], written: Callable[[int], str], unit: Unit) -> Chart:
    highest, step = max(values, default=0) or 1, WIDTH / len(times)
    every = -(-len(times) // MAX_LABELS)
    columns = list[Column]()
    for index, (at, value) in enumerate(zip(times, values, strict=True)):
        height = (BASE - TOP) * value / highest
        label = _time(at, unit) if index % every == 0 else ""
        columns.append(
            Column(
                x=round(index * step, 1),
                width=round(max(step - 3, 1), 1),
                y=round(BASE - height, 1),
                height=round(height, 1),
                label=label,
                title=f"{_time(at, unit)}: {written(value)}",
            )
        )
    is_cost = written is format_cost
    data = {
        "times": [at // SECOND for at in times],
        "values": [value / NANO for value in values] if is_cost else values,
        "titles": [column.title for column in columns],
        "labels": [_time(at, unit) for at in times],
        "prefix": "$" if is_cost else "",
    }
    return Chart(title, written(max(values, default=0)), columns, msgspec.json.encode(data).decode())


def _time(at: int, unit: Unit) -> str:
    moment = datetime.fromtimestamp(at // SECOND, UTC)
    return f"{moment:%H:%M}" if unit == "hour" else f"{moment:%d %b}"


def _number(value: int) -> str:
    return f"{value:,}"


def _name(row: UsageRow) -> str:
    values = [str(value) for value in row.dimensions.values() if value is not None]
    return " v".join(values) if values else "none"


router = Router("/", route_handlers=[show_usage])
