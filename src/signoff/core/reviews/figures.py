"""Figures of reviews: sums over the receipts of an hour, a policy, a target, a prompt version and a reviewer."""

from collections import defaultdict
from typing import Any, Literal

import msgspec

from signoff.core.job import Job
from signoff.core.reviews.catch_rate import INTERVAL_ERROR, highest_catch_rate, lowest_catch_rate
from signoff.core.reviews.receipt import VerdictReceipt
from signoff.core.reviews.votes import cohens_kappa

FigureDimension = Literal["policy", "target", "prompt", "prompt_version", "reviewer", "hour", "day"]


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
    prompt: str | None = None
    """Name of the prompt or pipeline; None for all."""
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
    """Number of `approved` that a reviewer edited first."""
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
    delivered: int = 0
    """Number of `approved` that were delivered; the copy of a cancelled job is not."""
    planted: int = 0
    """Number of planted items that were judged; they count in no other sum but `open_us`."""
    caught: int = 0
    """Number of those that were rejected, sent back or corrected."""
    own_approvals: int = 0
    """Number of the pairs of votes in which the reviewer approved."""
    own_redos: int = 0
    """Number of those in which the reviewer sent the answer back."""
    own_rejections: int = 0
    """Number of those in which the reviewer rejected."""
    other_approvals: int = 0
    """Number of the pairs of votes in which the other one approved."""
    other_redos: int = 0
    """Number of those in which the other one sent the answer back."""
    other_rejections: int = 0
    """Number of those in which the other one rejected."""


class FigureRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a report of figures."""

    dimensions: dict[str, str | int | None]
    """Value of each dimension of the query."""
    totals: FigureTotals
    """Sums over the decisions with these values."""


class DecisionDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a decision that its receipt leaves out, such as whether it was about a planted item."""

    is_caught: bool | None = None
    """True if a planted item was rejected, sent back or corrected; None for the answer of a model."""
    is_copy: bool = False
    """True if nobody gets the answer, because its job was cancelled."""
    prompt: str | None = None
    """Name of the prompt or pipeline that gave the answer; None for that of a model."""
    prompt_version: int | None = None
    """Its version."""


def details_of(before: Job, *, is_caught: bool | None) -> DecisionDetails:
    """Return the details of a decision on the job `before`; `is_caught` is that of the details."""
    prompt, version = before.prompt, before.prompt_version
    if before.pipeline_id is not None:  # no prompt and pipeline have the same name
        prompt, version = before.target, before.pipeline_version
    is_copy = before.copy_of is not None
    return DecisionDetails(is_caught=is_caught, is_copy=is_copy, prompt=prompt, prompt_version=version)


def kappa_of(totals: FigureTotals) -> float | None:
    """Return Cohen's kappa of the pairs of votes; None if it is not defined, or not known of earlier votes.

    Each pair counts for both reviewers.
    """
    own = (totals.own_approvals, totals.own_redos, totals.own_rejections)
    others = (totals.other_approvals, totals.other_redos, totals.other_rejections)
    if sum(own) != totals.vote_pairs:
        return None
    return cohens_kappa(totals.vote_pairs, totals.agreed_pairs, zip(own, others, strict=True))


_VERDICTS = {"approve": "approvals", "redo": "redos", "reject": "rejections"}


def figures_of(receipt: VerdictReceipt, details: DecisionDetails) -> dict[str, FigureTotals]:
    """Return what a receipt adds to the sums of each reviewer."""
    sums = defaultdict[str, dict[str, int]](lambda: defaultdict(int))
    for each in receipt.open:
        sums[each.reviewer]["open_us"] += each.us
    own = sums[receipt.reviewer]
    if details.is_caught is not None:
        own |= {"planted": 1, "caught": int(details.is_caught)}
        return {reviewer: FigureTotals(**totals) for reviewer, totals in sums.items()}
    own["decisions"] = 1
    own["delivered"] = int(receipt.verdict == "approve" and not details.is_copy)
    own[{"approve": "approved", "redo": "redone", "reject": "rejected"}[receipt.verdict]] = 1
    own["edited"] = int(receipt.released not in {None, receipt.shown.answer})
    own["verdict_us"] = 0 if receipt.held_at is None else max(0, receipt.decided_at - receipt.held_at)
    for vote in receipt.votes:
        voter = sums[vote.reviewer]
        for other in receipt.votes:
            if other.reviewer != vote.reviewer:
                voter["vote_pairs"] += 1
                voter["agreed_pairs"] += other.verdict == vote.verdict
                voter[f"own_{_VERDICTS[vote.verdict]}"] += 1
                voter[f"other_{_VERDICTS[other.verdict]}"] += 1
    return {reviewer: FigureTotals(**totals) for reviewer, totals in sums.items()}


def totals_as_json(totals: FigureTotals) -> dict[str, Any]:
    """Return sums with the figures that follow from them; null where there is nothing to divide by."""
    names = ("decisions", "approved", "delivered", "edited", "redone", "rejected")
    sums = {name: getattr(totals, name) for name in names}
    planted, caught = totals.planted, totals.caught
    return sums | {
        "average_verdict_seconds": _ratio(totals.verdict_us, totals.decisions * 1_000_000),
        "reviewer_seconds": totals.open_us / 1_000_000,
        "reviewer_seconds_per_delivered_answer": _ratio(totals.open_us, totals.delivered * 1_000_000),
        "agreement": _ratio(totals.agreed_pairs, totals.vote_pairs),
        "kappa": kappa_of(totals) if totals.vote_pairs else None,
        "planted": planted,
        "caught": caught,
        "catch_rate_lowest": lowest_catch_rate(caught, planted, INTERVAL_ERROR) if planted else None,
        "catch_rate_highest": highest_catch_rate(caught, planted, INTERVAL_ERROR) if planted else None,
    }


def _ratio(number: int, by: int) -> float | None:
    return number / by if by else None
