"""Bulk decisions: one verdict on many similar answers, each with a decision of its own."""

from typing import Literal

import msgspec

from signoff.core.job import Job, Verdict
from signoff.core.reviews.marks import needs_single_decision

MAX_BULK = 500
# Share of every selection that goes back for single decisions, besides the answers that no bulk decides.
SINGLE_SHARE = 0.05
BulkState = Literal["selected", "decided", "skipped", "undone"]


class BulkItem(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of a bulk decision."""

    job_id: str
    round: int
    """Review round that was selected."""
    state: BulkState = "selected"
    """`decided` and `undone` say what happened, `skipped` that it was not possible."""
    message: str | None = None
    """Reason why it was skipped."""


class Bulk(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk decision: a fixed selection, which its reviewer previews, applies, and may undo."""

    id: str
    reviewer: str
    """Email of the reviewer, who alone may apply and undo it."""
    verdict: Verdict
    reason: str | None
    items: tuple[BulkItem, ...]
    """Selected answers, in the order of the list."""


def stays_out_of_bulk(job: Job) -> bool:
    """Return True if no bulk decides on the answer: because several reviewers must, or because it may be an audit."""
    return needs_single_decision(job) or (job.ruling is not None and job.ruling.votes > 1)
