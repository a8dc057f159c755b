"""A job: a request for an answer, its current state, and its events."""

from typing import Any, Literal

import msgspec

from signoff.core.ask import Lane
from signoff.core.cache import CacheState
from signoff.core.delivery import DeliveryTarget
from signoff.core.reviews.policy import POLICY_DOOR, JobPolicy
from signoff.core.reviews.ruling import Ruling
from signoff.core.tokens import Usage
from signoff.errors import is_retryable_end

# `bot`: queued, or in progress; `human`: held for a review; `success` and `fail`: ended.
Status = Literal["bot", "human", "success", "fail"]
STATUSES: tuple[Status, ...] = ("bot", "human", "success", "fail")
TERMINAL: frozenset[Status] = frozenset({"success", "fail"})

Verdict = Literal["approve", "redo", "reject"]
PRIORITIES = range(10)


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a job failed."""

    code: str
    """Stable error code, as documented in `docs/errors.md`."""
    message: str
    """Description for the caller."""
    status: int = 500
    """HTTP status for a caller who waits."""
    param: str | msgspec.UnsetType = msgspec.UNSET
    """Parameter of the request that is at fault; not set if the error is not about one."""

    @property
    def retryable(self) -> bool:
        """True if the same request may succeed later."""
        return is_retryable_end(self.status)


# The status 408 is retryable, so the caller may send the request again with the same key.
CALLER_LEFT = JobError(code="cancelled", message="The caller disconnected before the answer came.", status=408)
INTERRUPTED = JobError(code="interrupted", message="The server stopped before the answer came.", status=503)
WITHOUT_ANSWER = JobError(code="job_failed", message="The job ended without an answer.")
RUN_ENDED = JobError(code="cancelled", message="The pipeline run of this step has ended.", status=409)


class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """A reviewer's changes to a job."""

    payload: str | None = None
    """JSON text that replaces the body of the request; None for no change."""
    response: str | None = None
    """JSON text that replaces the answer; None for no change."""


class Draft(Edit, frozen=True, kw_only=True):
    """Edit of a held job that a reviewer has saved without a verdict."""

    author: str | None = None
    """Email of the reviewer; None for a draft that was saved before drafts had authors."""


class NewTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of a job that an edited request changes besides `body`; see `Job`."""

    target: str
    model: str
    path: str
    policy: JobPolicy
    max_attempts: int


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one review round."""

    verdict: Verdict
    """`approve` releases the answer, `redo` sends the request to the model again, `reject` fails the job."""
    reviewer: str
    """Email of the reviewer."""
    reason: str | None = None
    """Reason that the reviewer gave."""
    edit: Edit = Edit()
    """Changes that take effect with the verdict."""
    new_target: NewTarget | None = None
    """Admission of the edited request; None if the request is not edited, or is the run of a pipeline."""


class Vote(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict of one of several reviewers, blind to those of the others, on an answer that needs several."""

    decision: Decision
    """Verdict, reviewer, reason and edit; the decision of the round comes from all of its votes."""
    at: int
    """Microseconds since 1970, UTC, by the clock of the database."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A request for an answer, and its current state. Only transitions change it.

    Times (`…_at`, `…_until`, `review_deadline`) are microseconds since 1970, UTC, by the clock of the database.
    """

    id: str
    """UUIDv7 in text form, assigned on admission; ids order jobs by age."""
    status: Status
    """State of the job; `bot` at the start, unless the answer came from the cache or the request was refused."""
    door: str
    """Name of the door that took the request."""
    lane: Lane
    """`now` if a caller waits for the answer, `later` for the queue; `redo` changes it to `later`."""
    user_id: int
    """Owner."""
    token_id: int
    """Token that the request was made with."""
    target: str
    """Name of the model or pipeline that was requested."""
    model: str
    """Name of the registered model or pipeline behind `target`; a fallback replaces it when it answers."""
    path: str
    """Endpoint of the request, in the form of `api_paths.format_route`."""
    body: bytes
    """Request for the model, as JSON; a verdict `redo` can replace it."""
    response: bytes | None = None
    """Answer, as JSON; None until there is one. It is not released while the job is held."""
    error: JobError | None = None
    """Reason of the failure of the job or of its last attempt; None if there was none."""
    usage: Usage | None = None
    """Tokens of the answer; None until there is one, or if they are not known."""
    metadata: bytes = b"null"
    """JSON of the caller's own; of a step the `StepCall`. It never changes."""
    priority: int = 5
    """From 0 to 9; jobs with a higher priority are claimed first."""
    policy: JobPolicy = JobPolicy()
    """Review policy: that of the admission, or a stricter one that applied when the job was performed."""
    client_id: str | None = None
    """Id that the caller chose, unique among the jobs of the user and the door; None for none."""
    idempotency_key: str | None = None
    """`Idempotency-Key` of the request; None for none."""
    fingerprint: str | None = None
    """Hash of the request, by which a retry finds the job; None if retries do not join it."""
    upstream_object_id: str | None = None
    """Id of the object that the answer created at the upstream; None until there is an answer, or if there is none."""
    retry_of: str | None = None
    """Id of the ended job that this one repeats; None for a new request."""
    prompt: str | None = None
    """Name of the prompt that the body was rendered from; None for none."""
    prompt_version: int | None = None
    """Version of that prompt."""
    key_id: int | None = None
    """Upstream key of the caller that the request is sent with; None for the key of the model."""
    headers: dict[str, str] | None = None
    """Headers of the caller that pass on to the model, by name in lower case; None for none."""
    deliver: tuple[DeliveryTarget, ...] = ()
    """Receivers of the end of the job."""
    attempt: int = 0
    """Attempts so far: `claim` adds 1, `release` and `park` subtract 1, `redo` sets 0; a waiting call counts itself."""
    max_attempts: int = 5
    """Number of attempts after which the job fails."""
    round: int = 0
    """Review round: `hold` and `undo` add 1, so a reviewer cannot decide on a state that has changed."""
    seq: int = 1
    """Number of the last event; each transition adds 1."""
    due_at: int = 0
    """Time from which the job may be claimed; a retry sets it to a later time."""
    lease: str | None = None
    """Lease token of the worker, or of the server that answers the call; None while no one works on the job."""
    lease_until: int | None = None
    """Time at which the lease lapses unless its holder renews it."""
    ruling: Ruling | None = None
    """Ruling of the policy on the answer of this round; None before there is one, or if nothing is looked at."""
    review_queue: str | None = None
    """Review queue of the held answer; None for the queue of all reviewers, or if it is not held."""
    review_priority: int | None = None
    """Priority of the held answer on the desk, from 0 to 9; None if it was never held."""
    assignee: str | None = None
    """Email of the reviewer to whom the held answer is assigned; None for nobody."""
    held_at: int | None = None
    """Time of the last `hold`; None if the answer was never held."""
    escalated_at: int | None = None
    """Time of the last escalation or other move to another review queue; None if there was none."""
    copy_of: str | None = None
    """Id of the job that this one is a copy of for reviewers alone: it has no caller; None for a job of a caller."""
    draft: Draft | None = None
    """Saved edits of a reviewer that have no effect yet; the end of the review clears them."""
    review_lease: str | None = None
    """Email of the reviewer who has the job open; None if no one has."""
    review_lease_until: int | None = None
    """Time at which the review lease ends."""
    review_deadline: int | None = None
    """Time at which the review expires; None for no deadline."""
    decision: Decision | None = None
    """Decision of the current round; `undo` and `redo` clear it."""
    release_at: int | None = None
    """Time at which the decision takes effect and can no longer be undone; None without a pending decision."""
    prompt_tokens: int = 0
    """Sum of the prompt tokens of all attempts and rounds."""
    cached_tokens: int = 0
    """Number of prompt tokens that the upstream read from its own cache."""
    completion_tokens: int = 0
    """Sum of the completion tokens of all attempts and rounds."""
    cost_nanodollars: int | None = None
    """Sum of the costs of all attempts and rounds; None if the price of one is not known."""
    queued_us: int | None = None
    """Microseconds that the job waited for its first attempt; None before it."""
    ttft_us: int | None = None
    """Microseconds from the request to the model to its first chunk, in the last attempt; None before it."""
    generation_us: int | None = None
    """Microseconds from the first chunk of the model to its last one, in the last attempt; None before it."""
    created_at: int = 0
    """Time of admission."""
    updated_at: int = 0
    """Time of the last transition."""
    cache: CacheState | None = None
    """Use of the response cache; of a pipeline run, how its steps use it (None: each by its own rules)."""
    cache_key: str | None = None
    """Key of the answer in the response cache; None if it is not cacheable."""
    parent_id: str | None = None
    """Id of the pipeline run that this job is a step of; None for other jobs."""
    parent_round: int | None = None
    """Round of the run in which the step was created."""
    node: str | None = None
    """Position of the step in the tree of the pipeline, such as `0.1`; see `nodes.calls_by_node`."""
    pipeline_id: int | None = None
    """Id of the pipeline of a run; None for other jobs."""
    pipeline_version: int | None = None
    """Version of that pipeline."""
    batch_id: str | None = None
    """Id of the batch that this job is a line of; None for other jobs."""
    batch_line: int | None = None
    """Number of that line in the input file of the batch, from 1."""
    parked_at: int | None = None
    """Time since when a run waits for steps that are held or not due; None while it can go on."""

    @property
    def is_terminal(self) -> bool:
        """True if the job has ended and never changes again."""
        return self.status in TERMINAL

    @property
    def is_waiting_call(self) -> bool:
        """True if a client waits for the answer on its connection."""
        return self.lane == "now" and self.parent_id is None

    @property
    def is_consultation(self) -> bool:
        """True if a policy asks a model about an answer: its contents, which are of another user, are not stored."""
        return self.door == POLICY_DOOR


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A transition of a job that took place. Events are never changed."""

    job_id: str
    """Id of the job."""
    seq: int
    """Number of the event within its job, from 1."""
    verb: str
    """Key of the transition in `TRANSITIONS`."""
    actor: str
    """User (`user:EMAIL`) or part of the server that requested the transition."""
    at: int
    """Microseconds since 1970, UTC, by the clock of the database."""
    data: dict[str, Any]
    """Columns that the transition changed, with their new values, and notes."""


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A finished call of a function in a pipeline run."""

    job_id: str
    """Id of the run."""
    round: int
    """Round of the run in which the function was called."""
    node: str
    """Position of the call in the tree of the pipeline, such as `0.1`."""
    name: str
    """Name of the function."""
    arguments: bytes
    """Arguments by name, as a JSON object."""
    output: bytes | None = None
    """Result, as JSON; None if the call failed."""
    error: JobError | None = None
    """Reason of a failure; None if the call succeeded."""
    began_at: int
    """Microseconds since 1970, UTC."""
    ended_at: int
    """Microseconds since 1970, UTC."""


class StepCall(msgspec.Struct, frozen=True, kw_only=True):
    """The call of a pipeline that a step was created for, as it stands in the metadata of the step."""

    kind: str
    """Kind of the callee: a prompt or a pipeline."""
    name: str
    """Name of the callee."""
    version: int
    """Version of the callee."""
    arguments: dict[str, str]
    """Arguments by name."""
