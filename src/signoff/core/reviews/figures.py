"""Figures of reviews: sums over the receipts of an hour, a policy, a target and a reviewer."""

from collections import defaultdict
from typing import Any, Literal

import msgspec

from signoff.core.reviews.receipt import VerdictReceipt

FigureDimension = Literal["policy", "target", "reviewer", "hour", "day"]


class FigureQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A query for the figures of the decisions that took effect in a time range."""

    by: tuple[FigureDimension, ...] = ()
    """Dimensions to group by; none for one total."""
    since: int = 0
    """Start of the range, rounded down to a whole hour; microseconds since 1970, UTC."""
    until: int | None = None
    """End of the range, rounded up to a whole hour and excluded; None for no end."""
    policy: str | None = None
    """Name of the policy; None for all."""
    target: str | None = None
    """Name of the model or pipeline; None for all."""
    reviewer: str | None = None
    """Email of the reviewer; None for all."""
    offset: int = 0
    """Number of rows to skip."""
    limit: int = 1000
    """Maximum number of rows."""


class FigureTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over some decisions, of which each counts for the reviewer who decided."""

    decisions: int = 0
    """Number of decisions that took effect, those of deadlines included."""
    approved: int = 0
    """Number of answers that were released."""
    edited: int = 0
    """Number of those that were edited before."""
    redone: int = 0
    """Number of requests that were sent to the model again."""
    rejected: int = 0
    """Number of answers that were withheld."""
    verdict_us: int = 0
    """Microseconds from the hold to the verdict."""
    open_us: int = 0
    """Microseconds for which reviewers had answers open. They count for each reviewer, whoever decided."""
    vote_pairs: int = 0
    """Number of pairs of votes in one round, counted for both reviewers."""
    agreed_pairs: int = 0
    """Number of those with the same verdict."""


class FigureRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a report of figures."""

    dimensions: dict[str, str | int | None]
    """Value of each dimension of the query."""
    totals: FigureTotals


def figures_of(receipt: VerdictReceipt) -> dict[str, FigureTotals]:
    """Return what a receipt adds to the sums of each reviewer."""
    sums = defaultdict[str, dict[str, int]](lambda: defaultdict(int))
    own = sums[receipt.reviewer]
    own["decisions"] = 1
    own[{"approve": "approved", "redo": "redone", "reject": "rejected"}[receipt.verdict]] = 1
    own["edited"] = int(receipt.released not in {None, receipt.shown.answer})
    own["verdict_us"] = 0 if receipt.held_at is None else max(0, receipt.decided_at - receipt.held_at)
    for each in receipt.open:
        sums[each.reviewer]["open_us"] += each.us
    for vote in receipt.votes:
        others = [other for other in receipt.votes if other.reviewer != vote.reviewer]
        sums[vote.reviewer]["vote_pairs"] += len(others)
        sums[vote.reviewer]["agreed_pairs"] += sum(other.verdict == vote.verdict for other in others)
    return {reviewer: FigureTotals(**totals) for reviewer, totals in sums.items()}


def totals_as_json(totals: FigureTotals) -> dict[str, Any]:
    """Return sums with the figures that follow from them; null where there is nothing to divide by."""
    sums = {name: getattr(totals, name) for name in ("decisions", "approved", "edited", "redone", "rejected")}
    return sums | {
        "average_verdict_seconds": _ratio(totals.verdict_us, totals.decisions * 1_000_000),
        "reviewer_seconds": totals.open_us / 1_000_000,
        "reviewer_seconds_per_delivered_answer": _ratio(totals.open_us, totals.approved * 1_000_000),
        "agreement": _ratio(totals.agreed_pairs, totals.vote_pairs),
    }


def _ratio(number: int, by: int) -> float | None:
    return number / by if by else None
