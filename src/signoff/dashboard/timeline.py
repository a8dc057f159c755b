"""The timeline of a job: its events in words, and why it has its status."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from signoff.core.job import Event, Job
from signoff.core.reviews.policy import Escalation
from signoff.core.reviews.strictness import deadline_of
from signoff.core.transitions import TRANSITIONS
from signoff.core.wire import format_time
from signoff.dashboard.shell import format_duration, format_unit

# A pause between two events that is longer gets a line of its own.
LONG_PAUSE_US = 60_000_000
# Titles of events by verb, with the icon and the class of the mark.
_PLAIN = {
    "submit": ("Received", "in", ""),
    "hit": ("Answered from the cache", "check", ""),
    "refuse": ("Refused", "x", "bad"),
    "release": ("Given back by its worker", "back", ""),
    "lapse": ("Its worker was lost", "x", "bad"),
    "park": ("Waits for its steps", "pause", "hold"),
    "wake": ("A step has ended", "play", ""),
    "succeed": ("Answered", "check", ""),
    "fail": ("Failed", "x", "bad"),
    "retry": ("The attempt failed", "x", "bad"),
    "draft": ("Draft saved", "edit", ""),
    "undo": ("Verdict withdrawn", "back", ""),
    "approve": ("Answer released", "check", ""),
    "redo": ("Asked again", "retry", ""),
    "reject": ("Answer withheld", "stop", "bad"),
    "cancel": ("Cancelled", "stop", "bad"),
    "expire": ("No verdict came in time", "clock", "bad"),
}
_VERDICTS = {"approve": "Approved", "redo": "Sent back", "reject": "Rejected"}


class TimelineEntry(NamedTuple):
    """Event on the timeline."""

    title: str
    """The event in words."""
    icon: str
    """Name of its icon."""
    colour: str
    """Class of its mark: `bad`, `hold`, or empty."""
    at: int
    """Time in microseconds since 1970, UTC."""
    after: str
    """Time since the job was received."""
    detail: str = ""
    """Detail of the event; empty if the title says it all."""
    quote: str = ""
    """Text of a person or of an error."""
    pause: str = ""
    """Length of the long pause before the event; empty for none."""


def timeline(events: Sequence[Event]) -> list[TimelineEntry]:
    """Return the entries of a timeline, oldest first. Events whose data the caller may not see have a title alone."""
    return list(_entries(events))


def _entries(events: Sequence[Event]) -> Iterator[TimelineEntry]:
    attempt, began, before = 0, events[0].at if events else 0, None
    for event in events:
        attempt = 0 if event.verb == "redo" else attempt + (event.verb == "claim")
        title, icon, colour = _title(event, attempt)
        pause = event.at - before if before is not None else 0
        yield TimelineEntry(
            title=title,
            icon=icon,
            colour=colour,
            at=event.at,
            after=f"+{format_duration(event.at - began)}" if event.at > began else "",
            detail=_detail(event),
            quote=_quote(event.data),
            pause=format_unit(pause) if pause > LONG_PAUSE_US else "",
        )
        before = event.at


def _title(event: Event, attempt: int) -> tuple[str, str, str]:
    """Return the event in words, the name of its icon, and the class of its mark."""
    person = event.actor.removeprefix("user:")
    verdict = _VERDICTS.get(_member(event.data, "decision", "verdict"), "Decided")
    special = {
        "claim": (f"Attempt {attempt} started", "run", ""),
        "hold": (f"Held for review, round {event.data.get('round', 1)}", "pause", "hold"),
        "open": (f"Opened by {person}", "in", ""),
        "leave": (f"Left by {person}", "back", ""),
        "decide": (f"{verdict} by {person}", "sign", ""),
    }
    other = (TRANSITIONS[event.verb].meaning.capitalize(), "ring", "")
    return special.get(event.verb) or _PLAIN.get(event.verb, other)


def _detail(event: Event) -> str:
    """Return what the data of an event says in words."""
    if event.verb == "submit" and "door" in event.data:
        lane = "a caller waits" if event.data.get("lane") == "now" else "for the queue"
        return f"{event.data.get('path', '')} at the door {event.data['door']}, {lane}"
    if event.verb == "cancel":
        return f"by {event.actor.removeprefix('user:')}"
    return ""


def _quote(data: dict[str, Any]) -> str:
    return _member(data, "decision", "reason") or _member(data, "error", "message")


def _member(data: dict[str, Any], name: str, member: str) -> str:
    """Return the text of a member of the object `name` in the data of an event; empty if there is none."""
    value = data.get(name)
    return str(cast("dict[str, Any]", value).get(member) or "") if isinstance(value, dict) else ""


def reason_of_state(job: Job, now: int) -> str:
    """Return, in a sentence, what a job that has not ended waits for; an empty text for one that has ended."""
    if job.is_terminal:
        return ""
    return _reason_of_review(job, now) if job.status == "human" else _reason_of_work(job, now)


def _reason_of_review(job: Job, now: int) -> str:
    if job.release_at is not None and job.decision is not None:
        when = _in(job.release_at, now)
        return f"{job.decision.reviewer} decided; it takes effect {when}, until then it can be undone."
    if job.review_lease is not None and (job.review_lease_until or 0) > now:
        return f"{job.review_lease} has it open.{_deadline(job, now)}"
    held_at = job.updated_at if job.held_at is None else job.held_at
    return f"Waits for a person for {format_unit(max(now - held_at, 0))}. Nobody has it open.{_deadline(job, now)}"


def _reason_of_work(job: Job, now: int) -> str:
    if job.parked_at is not None:
        return "Waits for its steps: one is held for a review, or is not due yet."
    if job.lease is not None:
        return f"Attempt {job.attempt} of at most {job.max_attempts} is in progress."
    return f"The next attempt starts {_in(job.due_at, now)}." if job.due_at > now else "Waits for a free worker."


def _in(at: int, now: int) -> str:
    return f"in {format_unit(at - now)}" if at > now else "now"


def _deadline(job: Job, now: int) -> str:
    if job.review_deadline is None:
        return ""
    ways = {"stay": "it stays in review", "approve": "it is approved", "reject": "it is rejected"}
    outcome = deadline_of(job.ruling, job.policy).outcome
    way = "it moves to another review queue" if isinstance(outcome, Escalation) else ways[outcome]
    return f" Without a verdict, {way} {_in(job.review_deadline, now)} ({format_time(job.review_deadline)})."
