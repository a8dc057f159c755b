"""Transitions of the state of a job.

`TRANSITIONS` is the only source of the state machine: SQL guards, a table in the docs and tests are derived from it.
"""

from enum import Enum
from typing import Any

import msgspec

from signoff.core.job import Event, Status


class Guard(Enum):
    """A condition of a transition, checked in the transaction of the transition; the store turns each into SQL.

    The actor is the worker, reviewer or sweeper that requests the transition.
    """

    DUE = "the job has no lease and is not parked, and its due time has passed"
    LEASE = "the actor names the lease token of the job"
    LAPSED = "the lease has expired, by the database's clock"
    ROUND = "the round is the one that the actor saw"
    SEEN = "the job has not changed since the actor saw it, if the request says what that was"
    UNOPENED = "no other reviewer holds a live review lease"
    OPENED = "the actor has the review lease"
    UNDECIDED = "there is no verdict"
    DECIDED = "there is a verdict"
    UNRELEASED = "the verdict has not taken effect"
    RELEASED = "the release time of the verdict has passed"
    OVERDUE = "the review deadline has passed"
    QUIET = "no step of the run has settled since the actor counted them"
    PARKED = "the run is parked"


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the state machine."""

    verb: str
    """Name of the transition, as events record it."""
    meaning: str
    """Description for the documentation."""
    sources: tuple[Status, ...] = ()
    """Statuses in which it is allowed; empty for a transition that creates a job."""
    targets: tuple[Status, ...]
    """Statuses that it can lead to; the request names one unless there is only one."""
    guards: tuple[Guard, ...] = ()
    """Further conditions, all of which must hold."""
    clears: tuple[str, ...] = ()
    """Columns that it sets to NULL."""
    adds: dict[str, int] = {}
    """Columns that it adds a number to."""


_LEASE = ("lease", "lease_until")
_REVIEW_LEASE = ("review_lease", "review_lease_until")
_REVIEW = (*_REVIEW_LEASE, "review_deadline", "draft")
_VERDICT = ("decision", "release_at")


def _bot(verb: str, to: tuple[Status, ...], guards: tuple[Guard, ...], meaning: str, **adds: int) -> Transition:
    """Return a transition of a job that is queued or in progress; all but `claim` end the lease."""
    clears = () if verb == "claim" else _LEASE
    return Transition(verb=verb, meaning=meaning, sources=("bot",), targets=to, guards=guards, clears=clears, adds=adds)


def _reviewer(verb: str, meaning: str, *clears: str, guards: tuple[Guard, ...] = (Guard.UNOPENED,)) -> Transition:
    """Return a transition by which a reviewer changes a held job."""
    guards = (Guard.ROUND, *guards, Guard.UNDECIDED)
    return Transition(verb=verb, meaning=meaning, sources=("human",), targets=("human",), guards=guards, clears=clears)


def _release(verb: str, to: Status, meaning: str, *clears: str) -> Transition:
    """Return a transition by which a verdict takes effect."""
    guards = (Guard.ROUND, Guard.DECIDED, Guard.RELEASED)
    clears = (*_REVIEW, "release_at", *clears)
    return Transition(verb=verb, meaning=meaning, sources=("human",), targets=(to,), guards=guards, clears=clears)


TRANSITIONS: dict[str, Transition] = {
    transition.verb: transition
    for transition in (
        Transition(verb="submit", meaning="the job is accepted and committed", targets=("bot",)),
        Transition(verb="hit", meaning="the response cache has a signed-off answer", targets=("success",)),
        Transition(verb="refuse", meaning="the message is not a valid request", targets=("fail",)),
        Transition(
            verb="present",
            meaning="reviewers get a copy of a cancelled job under audit, or a planted item; it has no caller",
            targets=("human",),
        ),
        _bot("claim", ("bot",), (Guard.DUE,), "a worker takes the lease; the attempt counts", attempt=1),
        _bot("release", ("bot",), (Guard.LEASE,), "the worker returns the job; the attempt does not count", attempt=-1),
        _bot("retry", ("bot",), (Guard.LEASE,), "the attempt failed, and the next one is due later"),
        _bot(
            "lapse",
            ("bot", "fail"),
            (Guard.LEASE, Guard.LAPSED),
            "the lease was not renewed; the job is due again, or fails",
        ),
        _bot(
            "park",
            ("bot",),
            (Guard.LEASE, Guard.QUIET),
            "the run waits for its steps; the attempt does not count",
            attempt=-1,
        ),
        Transition(
            verb="wake",
            meaning="a step of the run has settled, and the run is due",
            sources=("bot",),
            targets=("bot",),
            guards=(Guard.PARKED,),
            clears=("parked_at",),
        ),
        _bot("hold", ("human",), (Guard.LEASE,), "the model answered, and the policy requires a review", round=1),
        _bot("succeed", ("success",), (Guard.LEASE,), "the model answered, and the policy requires no review"),
        _bot("fail", ("fail",), (Guard.LEASE,), "the attempt failed, and another one cannot help or is not allowed"),
        _reviewer("open", "a reviewer takes the review lease"),
        _reviewer("renew", "the reviewer extends the review lease", guards=(Guard.OPENED,)),
        _reviewer("leave", "the reviewer gives up the review lease", *_REVIEW_LEASE),
        _reviewer("draft", "the reviewer saves edits without a verdict"),
        _reviewer("assign", "the job is assigned to a reviewer or a review queue", *_REVIEW_LEASE),
        _reviewer("escalate", "the job moves to another review queue, for its reviewers to decide", *_REVIEW_LEASE),
        _reviewer(
            "vote",
            "one of several reviewers gives a verdict, which the others do not see",
            *_REVIEW_LEASE,
            "draft",
            guards=(Guard.SEEN, Guard.UNOPENED),
        ),
        _reviewer(
            "decide",
            "the reviewer gives a verdict, or the last vote does",
            *_REVIEW_LEASE,
            guards=(Guard.SEEN, Guard.UNOPENED),
        ),
        Transition(
            verb="undo",
            meaning="the reviewer withdraws the verdict; a new round begins, and a deadline with it",
            sources=("human",),
            targets=("human",),
            guards=(Guard.ROUND, Guard.DECIDED, Guard.UNRELEASED),
            clears=_VERDICT,
            adds={"round": 1},
        ),
        _release("approve", "success", "the answer, edited or not, is released"),
        _release(
            "redo", "bot", "the request, edited or not, is queued again", "decision", "response", "usage", "ruling"
        ),
        _release("reject", "fail", "the answer is withheld, with a reason"),
        Transition(
            verb="cancel",
            meaning="the owner, an admin, or the end of its run cancels the job; so does a caller who disconnects "
            "before the model has answered",
            sources=("bot", "human"),
            targets=("fail",),
            clears=(*_LEASE, *_REVIEW, *_VERDICT, "parked_at"),
        ),
        Transition(
            verb="expire",
            meaning="no verdict came in time; the policy decides the outcome",
            sources=("human",),
            targets=("success", "fail", "human"),
            guards=(Guard.OVERDUE, Guard.UNDECIDED),
            clears=("review_deadline",),
        ),
    )
}


def replay(events: list[Event]) -> dict[str, Any]:
    """Return the columns of a job as its `events` left them."""
    row: dict[str, Any] = {}
    for event in sorted(events, key=lambda event: event.seq):
        row |= event.data | {"seq": event.seq, "updated_at": event.at}
    return row
