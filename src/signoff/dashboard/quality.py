"""The page of the quality of reviews: times, edits, rejections, agreement, catch rates, and what waits, for admins."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from litestar import MediaType, Router, get
from litestar.params import FromQuery
from litestar.response import Template

from signoff.core.access import Caller, check_admin
from signoff.core.reviews.figures import FigureDimension, FigureQuery, FigureRow, FigureTotals
from signoff.core.times import DAY_US
from signoff.core.wire import format_time
from signoff.dashboard.charts import Chart
from signoff.dashboard.shell import QUALITY, page
from signoff.dashboard.usage_times import verdict_charts
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.work.reviews.budget_report import CatchReport, list_catch_rates
from signoff.work.reviews.history import queue_depths, recent_agreement
from signoff.work.reviews.library import list_policies
from signoff.work.reviews.receipts import review_figures
from signoff.work.services import Services

RANGES = {"7": "Last 7 days", "31": "Last 31 days", "92": "Last 92 days"}
DIMENSIONS: dict[str, tuple[FigureDimension, ...]] = {
    "target": ("target",),
    "prompt_version": ("prompt", "prompt_version"),
    "reviewer": ("reviewer",),
    "policy": ("policy",),
}
WORDS = {"target": "Model", "prompt_version": "Prompt or pipeline version", "reviewer": "Reviewer", "policy": "Policy"}
MAX_ROWS = 200
MAX_BUDGETS = 50


@get("/dashboard/quality", include_in_schema=False, media_type=MediaType.HTML)
async def show_quality(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    days: FromQuery[str] = "31",
    by: FromQuery[str] = "target",
) -> Template:
    """Show the figures of the verdicts that took effect in the last `days`, over time and by one dimension."""
    check_admin(caller)
    length, chosen = days if days in RANGES else "31", by if by in DIMENSIONS else "target"
    since = (services.clock() // DAY_US + 1 - int(length)) * DAY_US
    query = FigureQuery(by=DIMENSIONS[chosen], since=since, limit=MAX_ROWS)
    rows, totals = await review_figures(services, caller, query)
    over_time, _ = await review_figures(services, caller, FigureQuery(by=("day",), since=since))
    export = urlencode({"by": ",".join(query.by), "since": format_time(since)})
    depths = await queue_depths(services, caller)
    return page(
        request,
        services,
        caller,
        "quality.html",
        QUALITY.name,
        rows=[_row(_name(row), row.totals) for row in rows],
        totals=_row("All", totals),
        charts=_charts(over_time, since, int(length)),
        ranges=RANGES,
        length=length,
        dimensions=WORDS,
        chosen=chosen,
        is_cut=len(rows) == MAX_ROWS,
        export=f"/api/reviews/figures?{export}",
        agreement=await recent_agreement(services, caller),
        depths=depths,
        oldest=min((each.oldest_held_at for each in depths if each.oldest_held_at is not None), default=None),
        catch_rates=await _catch_rates(services, caller),
    )


def _row(name: str, totals: FigureTotals) -> dict[str, Any]:
    number = totals.decisions
    return {
        "name": name,
        "totals": totals,
        "verdict_us": totals.verdict_us // number if number else None,
        "open_us": totals.open_us // totals.approved if totals.approved else None,
        "edited": _share(totals.edited, number),
        "redone": _share(totals.redone, number),
        "rejected": _share(totals.rejected, number),
        "agreement": _share(totals.agreed_pairs, totals.vote_pairs),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _name(row: FigureRow) -> str:
    values = [str(value) for value in row.dimensions.values() if value is not None]
    return " v".join(values) if values else "none"


def _charts(rows: Sequence[FigureRow], since: int, days: int) -> list[Chart]:
    by_day = {row.dimensions["day"]: row.totals for row in rows}
    times = [since + index * DAY_US for index in range(days)]
    return verdict_charts([by_day.get(at, FigureTotals()) for at in times], times, "day")


async def _catch_rates(services: Services, caller: Caller) -> list[tuple[str, CatchReport]]:
    """Return what reviewers catch of the planted items of each policy with an error budget."""
    policies = await list_policies(services, caller, after="", limit=MAX_BUDGETS)
    rates = list[tuple[str, CatchReport]]()
    for policy in policies:
        if policy.budget is not None:
            rates += [(policy.name, each) for each in await list_catch_rates(services, caller, policy.name)]
    return rates


router = Router("/", route_handlers=[show_quality])
