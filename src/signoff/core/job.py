"""A job, and the moves it can make.

`MOVES` is the only source of the state machine: the SQL guards, the diagram in the docs
and the property tests are derived from it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import msgspec

from signoff.core.answer import Usage
from signoff.core.ask import Lane
from signoff.core.cache import CacheState
from signoff.core.delivery import DeliveryTarget
from signoff.core.policy import Policy

Status = Literal["bot", "human", "success", "fail"]
STATUSES: tuple[Status, ...] = ("bot", "human", "success", "fail")
TERMINAL: frozenset[Status] = frozenset({"success", "fail"})

Verdict = Literal["approve", "redo", "reject"]


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job failed. `status` is the HTTP status that a waiting caller gets."""

    code: str
    message: str
    status: int = 500

    @property
    def retryable(self) -> bool:
        """Whether asking the same again may help."""
        return self.status in {408, 429} or self.status >= 500


# A status that a retry can help: the caller may come back with the same key.
CALLER_LEFT = JobError(code="cancelled", message="The caller left before the answer came.", status=408)
INTERRUPTED = JobError(code="interrupted", message="The server that answered this call stopped.", status=503)
RUN_ENDED = JobError(code="cancelled", message="The run that asked for this has ended.", status=409)


class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """What a reviewer changed: texts of JSON, or None where untouched."""

    payload: str | None = None
    response: str | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict of one round: by whom, why, and with which edits."""

    verdict: Verdict
    reviewer: str
    reason: str | None = None
    edit: Edit = Edit()


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One ask and everything that happened to it. Times are microseconds since 1970, UTC.

    `client_id` is what its user calls it; no two jobs of a user share one. `path` is what is asked for, with its method
    where that is no POST; `made` is the id of what the answer left at the upstream. `usage` is what its answer took;
    the tokens and the cost below are of everything that its model was asked for it, the cost None where a price was
    not known. The last three say how long it waited to be asked, the model for its first word, and that for its last.
    `prompt` is the one that its body was made of, in the version `prompt_version`.

    `pipeline_id` is the pipeline that a run goes through, in `pipeline_version`; `parked_at` says since when it waits
    for steps that are held or put off, and its `cache` how they use it. A step of a run names the run and its round,
    and its own place in the tree: `node`, such as "0.1".
    `key_id` is the upstream key that its caller chose, None for the model's.
    """

    id: str
    status: Status
    door: str
    lane: Lane
    user_id: int
    token_id: int
    target: str
    model: str
    path: str
    body: bytes
    response: bytes | None = None
    error: JobError | None = None
    usage: Usage | None = None
    metadata: bytes = b"null"
    priority: int = 5
    policy: Policy = Policy()
    client_id: str | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None
    upstream_object_id: str | None = None
    retry_of: str | None = None
    prompt: str | None = None
    prompt_version: int | None = None
    key_id: int | None = None
    deliver: tuple[DeliveryTarget, ...] = ()
    attempt: int = 0
    max_attempts: int = 5
    round: int = 0
    seq: int = 1
    due_at: int = 0
    lease: str | None = None
    lease_until: int | None = None
    draft: Edit | None = None
    review_lease: str | None = None
    review_lease_until: int | None = None
    review_deadline: int | None = None
    decision: Decision | None = None
    release_at: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_nanodollars: int | None = None
    queued_us: int | None = None
    ttft_us: int | None = None
    generation_us: int | None = None
    created_at: int = 0
    updated_at: int = 0
    cache: CacheState | None = None
    cache_key: str | None = None
    parent_id: str | None = None
    parent_round: int | None = None
    node: str | None = None
    pipeline_id: int | None = None
    pipeline_version: int | None = None
    parked_at: int | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in TERMINAL


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One move that was made. `data` holds the columns that it changed."""

    job_id: str
    seq: int
    verb: str
    actor: str
    at: int
    data: dict[str, Any]


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a function in a round of a run. `arguments` and `output` are JSON, times are microseconds."""

    job_id: str
    round: int
    node: str
    name: str
    arguments: bytes
    output: bytes | None = None
    error: JobError | None = None
    began_at: int
    ended_at: int


class StepCall(msgspec.Struct, frozen=True, kw_only=True):
    """What a step remembers of the call that made it, in its metadata."""

    kind: str
    name: str
    version: int
    arguments: dict[str, str]


class Guard(Enum):
    """A condition that must hold at the instant of a move; the store turns each into SQL."""

    DUE = "no lease, not parked, and its time has come"
    LEASE = "the mover's lease token is the job's"
    LAPSED = "its lease ran out, by the database's clock"
    ROUND = "the round is the one the mover saw"
    UNOPENED = "no live review lease of somebody else"
    UNDECIDED = "no verdict is in"
    DECIDED = "a verdict is in"
    UNRELEASED = "the verdict has not taken effect yet"
    RELEASED = "the verdict's time has come"
    OVERDUE = "the review deadline has passed"
    QUIET = "no step of it has settled since the mover looked"
    PARKED = "it is parked"


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One verb of the state machine: from which statuses, to which, under what guards, and what it always changes."""

    verb: str
    meaning: str
    sources: tuple[Status, ...] = ()
    targets: tuple[Status, ...]
    guards: tuple[Guard, ...] = ()
    clears: tuple[str, ...] = ()
    adds: dict[str, int] = {}


_LEASE = ("lease", "lease_until")
_REVIEW = ("review_lease", "review_lease_until", "review_deadline", "draft")
_VERDICT = ("decision", "release_at")


def _bot(verb: str, to: tuple[Status, ...], guards: tuple[Guard, ...], meaning: str, **adds: int) -> Transition:
    """A move of the machine's side; all but a claim end the lease."""
    clears = () if verb == "claim" else _LEASE
    return Transition(verb=verb, meaning=meaning, sources=("bot",), targets=to, guards=guards, clears=clears, adds=adds)


def _reviewer(verb: str, meaning: str, *clears: str) -> Transition:
    """A move of a reviewer who looks at a held job."""
    guards = (Guard.ROUND, Guard.UNOPENED, Guard.UNDECIDED)
    return Transition(verb=verb, meaning=meaning, sources=("human",), targets=("human",), guards=guards, clears=clears)


def _release(verb: str, to: Status, meaning: str, *clears: str) -> Transition:
    """A verdict that takes effect."""
    guards = (Guard.ROUND, Guard.DECIDED, Guard.RELEASED)
    clears = (*_REVIEW, "release_at", *clears)
    return Transition(verb=verb, meaning=meaning, sources=("human",), targets=(to,), guards=guards, clears=clears)


TRANSITIONS: dict[str, Transition] = {
    move.verb: move
    for move in (
        Transition(verb="submit", meaning="accepted, durable", targets=("bot",)),
        Transition(verb="hit", meaning="the same was answered and signed off before", targets=("success",)),
        Transition(verb="refuse", meaning="it came, and cannot be asked", targets=("fail",)),
        _bot("claim", ("bot",), (Guard.DUE,), "a worker holds a lease; attempt + 1", attempt=1),
        _bot(
            "release",
            ("bot",),
            (Guard.LEASE,),
            "the worker stops, or a limit is reached; the attempt is given back",
            attempt=-1,
        ),
        _bot("retry", ("bot",), (Guard.LEASE,), "a failure that a retry can help; due later"),
        _bot("lapse", ("bot", "fail"), (Guard.LEASE, Guard.LAPSED), "its worker vanished"),
        _bot(
            "park",
            ("bot",),
            (Guard.LEASE, Guard.QUIET),
            "its steps wait for a person; the attempt is given back",
            attempt=-1,
        ),
        Transition(
            verb="wake",
            meaning="a step of it has settled; it goes on",
            sources=("bot",),
            targets=("bot",),
            guards=(Guard.PARKED,),
            clears=("parked_at",),
        ),
        _bot("hold", ("human",), (Guard.LEASE,), "there is an answer, and the policy wants a person", round=1),
        _bot("succeed", ("success",), (Guard.LEASE,), "answered, no review needed"),
        _bot("fail", ("fail",), (Guard.LEASE,), "no retry can help, or the attempts are used up"),
        _reviewer("open", "a reviewer looks at it"),
        _reviewer("leave", "the reviewer looks away", "review_lease", "review_lease_until"),
        _reviewer("draft", "edits are kept, nothing else changes"),
        _reviewer("decide", "the verdict is in", "review_lease", "review_lease_until"),
        Transition(
            verb="undo",
            meaning="the verdict is withdrawn; a new round begins",
            sources=("human",),
            targets=("human",),
            guards=(Guard.ROUND, Guard.DECIDED, Guard.UNRELEASED),
            clears=_VERDICT,
            adds={"round": 1},
        ),
        _release("approve", "success", "signed off, as it was or edited"),
        _release("redo", "bot", "asked again, the payload as it was or edited", "decision", "response", "usage"),
        _release("reject", "fail", "refused, with a reason"),
        Transition(
            verb="cancel",
            meaning="its owner does not want it any more",
            sources=("bot", "human"),
            targets=("fail",),
            clears=(*_LEASE, *_REVIEW, *_VERDICT, "parked_at"),
        ),
        Transition(
            verb="expire",
            meaning="nobody decided in time; the policy says what then",
            sources=("human",),
            targets=("success", "fail", "human"),
            guards=(Guard.OVERDUE, Guard.UNDECIDED),
            clears=("review_deadline",),
        ),
    )
}


def replay(events: list[Event]) -> dict[str, Any]:
    """The columns that `events`, in order, amount to."""
    row: dict[str, Any] = {}
    for event in sorted(events, key=lambda event: event.seq):
        row |= event.data | {"seq": event.seq, "updated_at": event.at}
    return row
