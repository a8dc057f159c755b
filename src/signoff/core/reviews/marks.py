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
_OWN = frozenset({"client_id", "idempotency_key", "fingerprint", "deliver", "retry_of", "lease", "lease_until", "id"})
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
    seq, first = (events[0].seq, events[0]) if events else (1, None)
    earlier = [replace(event, job_id=job.id, data=data_without_marks(event.data)) for event in original[: seq - 1]]
    if first is None:
        return earlier
    data = {name: value for name, value in first.data.items() if name in _OF_HOLD}
    return [*earlier, replace(first, verb="hold", data=data), *events[1:]]
