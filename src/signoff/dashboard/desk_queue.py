"""The queue of the desk: the held answers that it lists, their order, and the address that says so."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from signoff.core.access import Caller
from signoff.core.job import Job
from signoff.core.reviews.item import question_of
from signoff.core.reviews.queues import ReviewFilter, ReviewOrder, format_cursor, parse_cursor, place_of
from signoff.dashboard.desk_card import opener_of
from signoff.work.reviews.history import list_held, queue_depths, with_queues
from signoff.work.reviews.leases import take_first, take_next
from signoff.work.services import Services

MAX_LISTED = 30
# Longest text of a signal in a row, in characters.
MAX_IN_ROW = 40
# Signals that the list shows, the most telling one first.
SHOWN_SIGNALS = (
    *("signals.judge", "signals.logprob_min", "signals.logprob_mean", "signals.schema_ok", "signals.moderation"),
    *("signals.webhook", "answer.length", "cost"),
)
ORDERS: dict[ReviewOrder, str] = {"urgent": "most urgent first", "oldest": "oldest first", "newest": "newest first"}
AGES = {"3600": "for an hour or more", "86400": "for a day or more", "604800": "for a week or more"}


class QueueView(msgspec.Struct, frozen=True, kw_only=True):
    """Part of the queue that a reviewer looks at, as the address of the desk has it; an empty text is no condition."""

    queue: str = ""
    """Review queue; empty for all queues of the reviewer."""
    target: str = ""
    """Model, prompt or pipeline that was requested."""
    age: str = ""
    """Seconds since the hold, one of AGES."""
    mine: str = ""
    """Not empty for the answers that are assigned to the reviewer."""
    order: str = ""
    """Order of the list; empty for that of the desk."""
    after: str = ""
    """Cursor of the list."""

    @property
    def fields(self) -> dict[str, str]:
        """The members that are not empty, as the address and the forms of the page have them."""
        return {name: text for name, text in msgspec.structs.asdict(self).items() if text}

    @property
    def is_filtered(self) -> bool:
        """True if the view differs from a whole queue in the order of the desk."""
        return bool(self.fields.keys() - {"queue"})

    def first(self) -> "QueueView":
        """Return the view from its first answer on."""
        return msgspec.structs.replace(self, after="")

    def filters(self, caller: Caller) -> ReviewFilter:
        """Return the conditions and the order of the list. Raises BadRequest if the cursor is not valid."""
        orders: dict[str, ReviewOrder] = {name: name for name in ORDERS}
        return ReviewFilter(
            queues=(),
            target=self.target.strip() or None,
            assignee=caller.email if self.mine else None,
            min_age_seconds=float(self.age) if self.age in AGES else None,
            order=orders.get(self.order, "urgent"),
            after=parse_cursor(self.after) if self.after else None,
            limit=MAX_LISTED,
        )


class QueueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Held answer in the list of the queue."""

    job: Job
    """The job."""
    text: str
    """Beginning of the question."""
    priority: int
    """Priority on the desk, from 0 to 9."""
    opened_by: str | None
    """Email of the reviewer who has it open."""
    signal: str
    """Value of the signal that the list shows; empty if the answer does not have it."""


def view_of(fields: Mapping[str, str]) -> QueueView:
    """Return the view that the query of an address, or a form, describes."""
    return msgspec.convert(dict(fields), QueueView)


def address_with(path: str, view: QueueView, **more: str) -> str:
    """Return a path with the view, and what else is not empty, as its query."""
    text = urlencode(view.fields | {name: value for name, value in more.items() if value})
    return f"{path}?{text}" if text else path


async def open_next(services: Services, caller: Caller, view: QueueView, skip: list[str]) -> Job | None:
    """Open the next answer of the view for the caller, and return its job; None if none is left."""
    if not view.is_filtered:
        return await take_next(services, caller, view.queue or None, skip)
    filters = await with_queues(services, caller, view.queue or None, view.filters(caller))
    return await take_first(services, caller, filters, skip)


async def queue_state(services: Services, caller: Caller, view: QueueView) -> dict[str, Any]:
    """Return the variables of the queue: a page of its answers, and the number of all that wait."""
    filters, depths = view.filters(caller), await queue_depths(services, caller)
    chosen = [depth for depth in depths if not view.queue or depth.queue == view.queue]
    listed = await list_held(services, caller, view.queue or None, filters)
    signal = _signal_of(listed)
    return {
        "entries": [_entry(services, job, signal) for job in listed],
        "signal_name": signal.rpartition(".")[2],
        "next_cursor": format_cursor(*place_of(listed[-1], filters.order)) if listed and listed.may_continue else "",
        "depths": depths,
        "waiting": sum(depth.held for depth in chosen),
        "is_capped": any(depth.held_is_capped for depth in chosen),
        "view": view,
        "orders": ORDERS,
        "ages": AGES,
        "now": services.clock(),
    }


def _signal_of(held: Sequence[Job]) -> str:
    """Return the signal that the list shows: the same for all answers, so that it hints at no rule."""
    values = [item for job in held if job.ruling is not None for item in job.ruling.signals.items()]
    names = {name for name, value in values if signal_details(value) is None}
    return next((name for name in SHOWN_SIGNALS if name in names), "")


def _entry(services: Services, job: Job, signal: str) -> QueueEntry:
    value = None if job.ruling is None else job.ruling.signals.get(signal)
    return QueueEntry(
        job=job,
        text=" ".join(question_of(job)[:300].split()),
        priority=job.priority if job.review_priority is None else job.review_priority,
        opened_by=opener_of(services, job),
        signal="" if value is None or signal_details(value) is not None else signal_text(value),
    )


def signal_text(value: Any) -> str:
    """Return the value of a signal as the desk shows it: numbers with three digits, all else as JSON.

    >>> signal_text(0.123456), signal_text(True), signal_text(1234567)
    ('0.123', 'true', '1234567')
    """
    return f"{value:.3g}" if isinstance(value, float) else msgspec.json.encode(value).decode()


def signal_details(value: Any) -> str | None:
    """Return the text of a signal that has no room in a row: indented JSON, or a long text; None for any other."""
    if isinstance(value, str) and len(value) > MAX_IN_ROW:
        return value
    if not isinstance(value, dict | list):
        return None
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
