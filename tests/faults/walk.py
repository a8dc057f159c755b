"""Check of one job's events: each is an allowed transition by an allowed actor, and together they give the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from faults.tables import StoredJob
from signoff.core.job import TERMINAL, Event, Job
from signoff.core.transitions import TRANSITIONS, Guard, replay

Row = dict[str, Any]


class Finding(NamedTuple):
    """A broken law: its name, the job (or process), and an explanation."""

    law: str
    job: str
    text: str


def check_events(stored: StoredJob) -> Iterator[Finding]:
    """Yield the findings of one job."""
    job = stored.job
    yield from _check_sequence(stored)
    row, holder = Row(), None
    for event in stored.events:
        for law, text in _check_transition(row, event, holder):
            yield Finding(law, job.id, text)
        row |= event.data
        holder = {"claim": event.actor}.get(event.verb, holder)
        if row.get("attempt", 0) > job.max_attempts:
            yield Finding("attempts", job.id, f"attempt {row['attempt']} of {job.max_attempts}")
    if not matches_events(job, replay(stored.events)):
        yield Finding("replay", job.id, "its events do not give its row")


def _check_sequence(stored: StoredJob) -> Iterator[Finding]:
    """Check that events are numbered from 1, and only the last one ends the job."""
    job = stored.job
    if [event.seq for event in stored.events] != list(range(1, job.seq + 1)):
        yield Finding("replay", job.id, f"events {[event.seq for event in stored.events]}, seq {job.seq}")
    ends = [event.seq for event in stored.events if event.data.get("status") in TERMINAL]
    if len(ends) > 1:
        yield Finding("duplicated", job.id, f"it ended {len(ends)} times")
    if ends and ends[0] != job.seq:
        yield Finding("stale", job.id, "it went on after its end")


def _check_transition(row: Row, event: Event, holder: str | None) -> Iterator[tuple[str, str]]:
    """Yield the laws that an event breaks, by the state machine of the source, each with an explanation."""
    verbs: list[str] = event.data.get("moves", [event.verb])
    if not row:
        if verbs[0] != "submit":
            yield "moves", f"it begins with {verbs[0]}"
        return
    if event.verb not in TRANSITIONS:
        yield "moves", f"{event.verb} is no move"
        return
    transition = TRANSITIONS[event.verb]
    if row["status"] not in transition.sources or event.data.get("status") not in transition.targets:
        yield "moves", f"{event.verb} from {row['status']} to {event.data.get('status')}"
    for guard in transition.guards:
        if not GUARD_CHECKS[guard](row, event, holder):
            law = "stale" if guard is Guard.LEASE else "moves"
            yield (
                law,
                f"{event.verb} by {event.actor} at {event.seq}, although: {guard.value}; the lease was {holder}'s",
            )


def _is_holder(row: Row, event: Event, holder: str | None) -> bool:
    """Return True if the actor has the lease, or only ends a lease that has run out, as a sweeper does."""
    has_run_out = Guard.LAPSED in TRANSITIONS[event.verb].guards
    return row.get("lease") is not None and (has_run_out or holder in {None, event.actor})


# The guards, as far as events show their inputs; they do not show renewals of leases, rounds and jobs that
# reviewers saw, or steps that had settled.
GUARD_CHECKS: dict[Guard, Callable[[Row, Event, str | None], bool]] = {
    Guard.DUE: lambda row, event, _: (
        row.get("lease") is None and row.get("parked_at") is None and row["due_at"] <= event.at
    ),
    Guard.LEASE: _is_holder,
    Guard.LAPSED: lambda row, event, _: row.get("lease") is not None and row["lease_until"] < event.at,
    Guard.ROUND: lambda row, event, _: True,
    Guard.SEEN: lambda row, event, _: True,
    Guard.UNOPENED: lambda row, event, _: True,
    Guard.OPENED: lambda row, event, _: row.get("review_lease") is not None,
    Guard.UNDECIDED: lambda row, event, _: row.get("release_at") is None,
    Guard.DECIDED: lambda row, event, _: row.get("release_at") is not None,
    Guard.UNRELEASED: lambda row, event, _: row["release_at"] > event.at,
    Guard.RELEASED: lambda row, event, _: row["release_at"] <= event.at,
    Guard.OVERDUE: lambda row, event, _: row["review_deadline"] <= event.at,
    Guard.QUIET: lambda row, event, _: True,
    Guard.PARKED: lambda row, event, _: row.get("parked_at") is not None,
}


def matches_events(job: Job, replayed: Row) -> bool:
    """Return True if the row of `job` agrees with its events; the body is stored only in the row."""
    row = msgspec.json.decode(msgspec.json.encode(job)) | {"metadata": msgspec.json.decode(job.metadata)}
    row["response"] = None if job.response is None else msgspec.json.decode(job.response)
    names = row.keys() & replayed.keys()
    return {name: row[name] for name in names} == {name: replayed[name] for name in names}
