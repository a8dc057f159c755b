"""Bulk decisions: one verdict on many similar answers, each with a decision of its own."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from signoff.core.job import Job, Verdict
from signoff.core.reviews.marks import needs_single_decision

MAX_BULK = 500
MAX_CONDITIONS = 10
# Share of every selection that goes back for single decisions, besides the answers that no bulk decides.
SINGLE_SHARE = 0.05
BulkState = Literal["selected", "decided", "skipped", "undone"]


# The states of an item in the order in which it can have them.
_STATES: tuple[BulkState, ...] = ("selected", "skipped", "decided", "undone")


class SignalsCondition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Condition on a signal of an answer. An answer without the signal does not match, nor one where it is null."""

    name: str
    """Full name of the signal, such as `signals.judge` or `answer.length`."""
    at_least: float | None = None
    """Smallest value; None for no bound."""
    at_most: float | None = None
    """Largest value; None for no bound."""
    equals: bool | float | str | None = None
    """The value; None for any."""

    def matches(self, signals: Mapping[str, Any]) -> bool:
        """Return True if an answer with these signals matches."""
        value: Any = signals.get(self.name)
        if value is None:
            return False
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.equals is not None and (
            value != self.equals or isinstance(value, bool) != isinstance(self.equals, bool)
        ):
            return False
        if self.at_least is not None and not (is_number and value >= self.at_least):
            return False
        return self.at_most is None or (is_number and value <= self.at_most)


class BulkItem(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of a bulk decision."""

    job_id: str
    """Id of the job."""
    round: int
    """Review round that was selected."""
    state: BulkState = "selected"
    """`decided` and `undone` say what happened, `skipped` that it was not possible."""
    message: str | None = None
    """Reason why it was skipped."""


class Bulk(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk decision: a fixed selection, which its reviewer previews, applies, and may undo."""

    id: str
    """UUIDv7 in text form."""
    reviewer: str
    """Email of the reviewer, who alone may apply and undo it."""
    verdict: Verdict
    """Verdict on each answer."""
    reason: str | None
    """Reason that the reviewer gave; None for none."""
    items: tuple[BulkItem, ...]
    """Selected answers, in the order of the list."""
    examined: int = 0
    """Number of held answers that the selection looked at."""
    is_whole: bool = True
    """False if there were more held answers, which the selection did not look at."""


def advanced(stored: Bulk, new: Bulk) -> Bulk:
    """Return `stored` with each item of `new`, the same bulk, whose state is later, or as late with a reason.

    So of two calls at the same time, such as to apply and to undo, neither takes back what the other has done.
    """
    items = {item.job_id: item for item in new.items}
    changed = [_later(item, items.get(item.job_id, item)) for item in stored.items]
    return msgspec.structs.replace(stored, items=tuple(changed))


def _later(stored: BulkItem, new: BulkItem) -> BulkItem:
    before, after = _STATES.index(stored.state), _STATES.index(new.state)
    return new if after > before or (after == before and new.message is not None) else stored


def stays_out_of_bulk(job: Job) -> bool:
    """Return True if no bulk decides on the answer: because several reviewers must, or because it may be an audit."""
    return needs_single_decision(job) or (job.ruling is not None and job.ruling.votes > 1)
