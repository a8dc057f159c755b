"""The error budget on the page of its policy: how it burns down, why its gate is open or closed, and its planted items.

Only admins see it, because it says how many answers are audited.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from signoff.core.access import Caller
from signoff.core.reviews.item import text_of
from signoff.work.reviews.budget_report import (
    BudgetPoint,
    BudgetReport,
    budget_curve,
    list_catch_rates,
    list_groups,
    list_planted,
    report_budget,
)
from signoff.work.services import Services

MAX_PLANTED = 20
MAX_GROUPS_SHOWN = 50
# The drawing, in units of its own; the axes stand left and below.
LEFT, RIGHT, TOP, BASE = 44, 500, 14, 190
MAX_TICKS = 5


class ChartLabel(NamedTuple):
    """Place on the drawing with a text."""

    x: float
    y: float
    text: str


class BudgetChart(NamedTuple):
    """Drawing of an error budget, which shrinks with each wrong answer that an audit finds."""

    line: str
    """Path of the steps, as the attribute `d` of SVG."""
    here: ChartLabel
    """Present point of the curve, with its text."""
    rows: list[ChartLabel]
    """Ticks of the vertical axis: wrong answers that may still leave."""
    columns: list[ChartLabel]
    """Ticks of the horizontal axis: audits that found a wrong answer, or have no verdict."""


class BudgetQuery(NamedTuple):
    """Selection of what the page shows of an error budget: a group, or a page of the groups."""

    group: str | None = None
    """Group to show; None for all, or for a budget without groups."""
    after: str | None = None
    """Last group of the page before; None for the first page."""


WHOLE = BudgetQuery()


async def budget_view(services: Services, caller: Caller, name: str, place: BudgetQuery) -> dict[str, Any]:
    """Return what the page shows of the budget of a policy. Raises Forbidden, NotFound, BadRequest."""
    planted = await list_planted(services, caller, name, after_id=0, limit=MAX_PLANTED)
    reviewers = {
        "catch_rates": await list_catch_rates(services, caller, name),
        "planted": [{"id": item.id, "path": item.path, "answer": text_of(item.response)[:200]} for item in planted],
    }
    groups = None
    if place.group is None:
        groups = await list_groups(services, caller, name, after=place.after, limit=MAX_GROUPS_SHOWN)
    if groups is not None:
        return reviewers | {"groups": groups, "label": group_label}
    return reviewers | await _figures(services, caller, name, place.group)


async def _figures(services: Services, caller: Caller, name: str, group: str | None) -> dict[str, Any]:
    """Return the figures of a budget without groups, or of one group, and how it burns down."""
    report = await report_budget(services, caller, name, group)
    curve = await budget_curve(services, caller, name, group)
    finds = report.wrong_found + report.audits_open
    return {
        "report": report,
        "label": group_label,
        "finds": finds,
        "left": max(0, report.allowed - report.bound),
        "closes_in": max(0, report.closes_after - finds),
        "chart": burn_down(curve, finds, report),
        "curve": curve,
    }


def group_label(report: BudgetReport) -> str:
    """Return the words for the group of a report."""
    return report.user or report.group or "without a value"


def burn_down(curve: Sequence[BudgetPoint], finds: int, report: BudgetReport) -> BudgetChart:
    """Return the drawing of a curve, at which `finds` audits have found a wrong answer or have no verdict."""
    widest, highest = max(point.finds for point in curve) or 1, max(report.allowed, 1)

    def x(number: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * number / widest, 1)

    def y(number: float) -> float:
        return round(BASE - (BASE - TOP) * number / highest, 1)

    steps = [f"M{x(curve[0].finds)} {y(curve[0].left)}"]
    steps += [f"H{x(point.finds)}V{y(point.left)}" for point in curve[1:]]
    left = next(point.left for point in curve if point.finds == finds)
    return BudgetChart(
        line="".join(steps),
        here=ChartLabel(x(finds), y(left), f"{left:,} left"),
        rows=[ChartLabel(LEFT, y(number), f"{number:,}") for number in _ticks(highest)],
        columns=[ChartLabel(x(number), BASE, f"{number:,}") for number in _ticks(widest)],
    )


def _ticks(highest: int) -> list[int]:
    """Return round numbers from 0 up to at most `highest`.

    >>> _ticks(10), _ticks(200), _ticks(3)
    ([0, 2, 4, 6, 8, 10], [0, 50, 100, 150, 200], [0, 1, 2, 3])
    """
    power = 10 ** max(0, len(str(highest)) - 2)
    step = next(size * power for size in (1, 2, 5, 10, 20, 50) if highest <= size * power * MAX_TICKS)
    return [*range(0, highest + 1, step)]
