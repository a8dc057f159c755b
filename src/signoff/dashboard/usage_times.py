"""Latencies and review load on the page of usage: percentiles by model and over time, verdicts and the time to them."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import urlencode

from signoff.core.access import Caller
from signoff.core.latency import MAX_ERROR, Histogram, LatencyQuery, LatencyRow
from signoff.core.reviews.figures import FigureQuery, FigureTotals
from signoff.core.wire import format_time
from signoff.dashboard.charts import Chart, Unit, column_chart, format_number, format_percent
from signoff.dashboard.shell import format_duration
from signoff.work.admin.usage import latency_report
from signoff.work.reviews.receipts import review_figures
from signoff.work.services import Services

Measure = Literal["whole", "first"]
MEASURES: dict[Measure, str] = {"whole": "Whole answer", "first": "First byte"}
SHARES = (50, 95, 99)
MAX_MODELS = 50


class Period(NamedTuple):
    """Range of the page, and its division into hours or days."""

    since: int
    """Start, in microseconds since 1970, UTC."""
    until: int | None
    """End; None for now."""
    unit: Unit
    """Length of each part."""
    times: Sequence[int]
    """Start of each part."""

    @property
    def query(self) -> dict[str, str]:
        """Range as parameters of the API."""
        times = {"since": format_time(self.since)}
        return times if self.until is None else times | {"until": format_time(self.until)}


async def latency_view(services: Services, caller: Caller, period: Period, measure: Measure) -> dict[str, Any]:
    """Return the percentiles of all requests of the period, by model, and over time."""
    since, until = period.since, period.until
    by_model = await latency_report(services, caller, LatencyQuery(by="model", since=since, until=until))
    over_time = await latency_report(services, caller, LatencyQuery(by=period.unit, since=since, until=until))
    by_time = {row.group: row for row in over_time}
    return {
        "rows": [_percentiles(row) for row in by_model[:MAX_MODELS]],
        "is_cut": len(by_model) > MAX_MODELS,
        "measures": MEASURES,
        "measure": measure,
        "error": f"{100 * MAX_ERROR:g} %",
        "charts": [_chart(share, measure, period, by_time) for share in SHARES],
        "export": "/api/usage/latencies?" + urlencode({"by": "model"} | period.query | {"format": "csv"}),
    }


def _percentiles(row: LatencyRow) -> dict[str, Any]:
    return {
        "model": row.group,
        "jobs": row.whole.total,
        "first": [row.first.quantile(share / 100) for share in SHARES],
        "whole": [row.whole.quantile(share / 100) for share in SHARES],
    }


def _chart(share: int, measure: Measure, period: Period, by_time: dict[Any, LatencyRow]) -> Chart:
    histograms: list[Histogram | None] = [getattr(by_time.get(at), measure, None) for at in period.times]
    values = [(each and each.quantile(share / 100)) or 0 for each in histograms]
    return column_chart(f"{MEASURES[measure]}, p{share}", period.times, values, format_duration, period.unit)


async def review_view(services: Services, caller: Caller, period: Period) -> dict[str, Any] | None:
    """Return the load of reviewers and the time to their verdicts, for admins; None for others."""
    if caller.role != "admin":
        return None
    query = FigureQuery(by=(period.unit,), since=period.since, until=period.until)
    rows, totals = await review_figures(services, caller, query)
    by_time = {row.dimensions[period.unit]: row.totals for row in rows}
    figures = [by_time.get(at, FigureTotals()) for at in period.times]
    return {
        "totals": totals,
        "verdict_us": totals.verdict_us // totals.decisions if totals.decisions else None,
        "charts": verdict_charts(figures, period.times, period.unit),
        "export": "/api/reviews/figures?" + urlencode({"by": period.unit} | period.query | {"format": "csv"}),
    }


def verdict_charts(figures: Sequence[FigureTotals], times: Sequence[int], unit: Unit) -> list[Chart]:
    """Return the charts of verdicts over time: their number, the mean time to one, and the share that changed answers.

    `figures` are those of the periods that begin at `times`, in microseconds since 1970.
    """
    changed = [100 * (each.edited + each.redone + each.rejected) // (each.decisions or 1) for each in figures]
    verdict = [each.verdict_us // (each.decisions or 1) for each in figures]
    return [
        column_chart("Verdicts", times, [each.decisions for each in figures], format_number, unit),
        column_chart("Mean time to a verdict", times, verdict, format_duration, unit),
        column_chart("Edited, sent back or rejected", times, changed, format_percent, unit),
    ]
