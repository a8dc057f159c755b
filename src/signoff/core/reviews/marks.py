"""Marks of jobs that reviewers do not see: the rule that matched, the coin, audits, and planted items."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from signoff.core.access import Caller
from signoff.core.job import Event, Job

# Members of a stored ruling that tell why an answer is held.
_RULING_MARKS = ("rule", "coin", "audit")
# Members of events that belong to a job and not to its copy. Callers who do not see marks see them in the events of no
# job, because events without them would show that a job is a copy.
_OWN = frozenset(
    (
        *("client_id", "idempotency_key", "fingerprint", "deliver", "retry_of", "lease", "lease_until", "id"),
        *("parent_id", "parent_round", "node", "batch_id", "batch_line"),
    )
)
# Columns in which a copy can differ from its job, and which events before the hold show.
_OF_COPY = ("created_at", "due_at", "path", "attempt", "cache_key", "queued_us")
# Columns that the transition `hold` changes.
_OF_HOLD = frozenset(
    (
        *("status", "usage", "round", "model", "error", "attempt", "policy", "ruling"),
        *("review_queue", "review_priority", "response"),
    )
)


def needs_single_decision(job: Job) -> bool:
    """Return True if only a reviewer who looks at this answer may decide on it: it is audited, or planted."""
    coin = None if job.ruling is None else job.ruling.coin
    return job.copy_of is not None or (coin is not None and coin.is_look)


def sees_marks(caller: Caller, job: Job) -> bool:
    """Return True if `caller` sees the marks of `job`: an admin does, except before the verdict."""
    return caller.role == "admin" and job.status != "human"


def without_marks(job: Job) -> Job:
    """Return `job` for a caller who does not see its marks."""
    if job.ruling is None and job.copy_of is None:
        return job
    ruling = job.ruling and replace(job.ruling, **dict.fromkeys(_RULING_MARKS))
    return replace(job, ruling=ruling, copy_of=None)


def data_without_marks(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of an event for a caller who does not see the marks of its job."""
    plain = {name: value for name, value in data.items() if name != "copy_of" and name not in _OWN}
    if isinstance(plain.get("ruling"), dict):
        ruling: dict[str, Any] = plain["ruling"]
        plain["ruling"] = {name: value for name, value in ruling.items() if name not in _RULING_MARKS}
    return plain


def event_without_marks(event: Event) -> dict[str, Any]:
    """Return the data of an event for a caller who does not see marks; each `hold` has the same members."""
    if event.verb != "hold":
        return data_without_marks(event.data)
    return data_without_marks({name: event.data.get(name) for name in sorted(_OF_HOLD)})


def events_as_held(job: Job, original: Sequence[Event], events: Sequence[Event]) -> list[Event]:
    """Return the events of a copy as those of a job that was held.

    Args:
        job: The copy.
        original: Events of the job that it is a copy of.
        events: Events of the copy, which begin with `present`.
    """
    if not events:
        return []
    first, number = events[0], events[0].seq - 1
    own = {name: getattr(job, name) for name in _OF_COPY}
    earlier = [
        replace(event, job_id=job.id, at=at, data=data_without_marks(event.data) | _common(own, event.data))
        for event, at in zip(original[:number], _times_of_copy(job, original, first), strict=False)
    ]
    data = {name: value for name, value in first.data.items() if name in _OF_HOLD}
    later = [_as_cancelled(event, original) for event in events[1:]]
    return [*earlier, replace(first, verb="hold", data=data), *later]


def _times_of_copy(job: Job, original: Sequence[Event], hold: Event) -> list[int]:
    """Return the times of the events of `original`, moved and stretched from the creation of the copy to its hold."""
    if not original:
        return []
    begin, end = original[0].at, original[min(hold.seq, len(original)) - 1].at
    scale = (hold.at - job.created_at) / max(1, end - begin)
    return [min(hold.at, job.created_at + round((event.at - begin) * scale)) for event in original]


def _common(own: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in own.items() if name in data}


def _as_cancelled(event: Event, original: Sequence[Event]) -> Event:
    """Return the end of a copy that was sent back as the cancellation by the caller of the job."""
    is_end = event.verb == "cancel" and original
    return replace(event, actor=original[0].actor) if is_end else event
