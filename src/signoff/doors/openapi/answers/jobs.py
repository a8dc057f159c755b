"""Answers about jobs, and those of the doors that answer in a form of their own."""

from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from signoff.core.job import JobError, Status
from signoff.doors.openapi.answers.listing import ListPage
from signoff.work.pipelines.history import LoggedCall


class JobUsage(TypedDict):
    """Tokens of all attempts of a job."""

    prompt_tokens: int
    """Tokens of the requests."""
    cached_tokens: int
    """Tokens of the requests that the upstream had cached."""
    completion_tokens: int
    """Tokens of the answers."""


class JobTimes(TypedDict):
    """Durations of a job in seconds; null for those that are not known."""

    queued: float | None
    """From the submission to the last claim."""
    first_byte: float | None
    """From the request to the first byte of the answer."""
    answer: float | None
    """From the request to the end of the answer."""


class JobAnswer(TypedDict):
    """Job: a request, and everything that has happened to it."""

    job_id: str
    """Id of the job."""
    status: Status
    """`bot`: waits for a model; `human`: waits for a person; `success`, `fail`: has ended."""
    payload: Any
    """Body of the request, as it was sent."""
    response: Any
    """Answer; null until it is signed off, except for reviewers."""
    created_at: str
    """Time of the submission."""
    updated_at: str
    """Time of the last change."""
    model: str | None
    """Name that the request gave: a model, prompt or pipeline; null for the default model."""
    error: JobError | None
    """Reason of a failure."""
    attempt: int
    """Number of attempts so far."""
    round: int
    """Number of the review round; 0 before the first."""
    retry_of: str | None
    """Id of the job that this one retries."""
    usage: JobUsage | None
    """Tokens; null if none are known."""
    cost: str | None
    """Cost in dollars; null if the model has no price."""
    seconds: JobTimes
    """Durations."""
    parent: str | None
    """Id of the run that this step belongs to."""
    node: str | None
    """Position of this step in its run, such as `0.1`."""
    parked_at: str | None
    """Time since which a run waits for its steps."""
    prompt: str | None
    """Name of the prompt that was rendered."""
    prompt_version: int | None
    """Version of that prompt."""
    metadata: Any
    """Value that the request gave for this; returned unchanged."""
    cache: Literal["hit", "miss", "bypass"] | None
    """Use of the response cache."""
    cache_key: str | None
    """Key of the answer in the response cache."""
    caller_left_at: str | None
    """Time at which the caller left who waited for the answer."""


class JobPage(ListPage[JobAnswer]):
    """Page of jobs."""

    data: list[JobAnswer]
    """Jobs of the page, newest first."""
    total: NotRequired[int]
    """Number of jobs that match, at most 10000; with `total=1`."""
    total_is_capped: NotRequired[bool]
    """True if there are more."""


class QueueJob(TypedDict):
    """Job of the queue API, by the id that its caller chose."""

    job_id: str
    """Id of the caller, or of the job."""
    job_status: str
    """Status of the job in words of the queue API."""


class QueueResult(QueueJob):
    """Result of a job of the queue API."""

    content: str | None
    """Text of the answer; null before it."""
    error: JobError | None
    """Reason of a failure."""


class TextContent(TypedDict):
    """Answer as a text."""

    content: str | None
    """Text of the answer."""


class Confirmation(TypedDict):
    """Confirmation."""

    status: Literal["success"]
    """`success`."""


class AcceptedJob(Confirmation):
    """Confirmation that a job is committed."""

    job_id: str
    """Id of the job."""


class LoggedCallAnswer(TypedDict):
    """Call of a run."""

    began_at: str | None
    """Start of the call."""
    ended_at: str | None
    """End of the call."""
    seconds: float | None
    """Duration of the call."""


class DeliveryAnswer(TypedDict):
    """Message about the end of a job."""

    id: str
    """Id of the message, the same in each attempt."""
    job_id: str
    """Job that it is about."""
    kind: str
    """`webhook`, `redis` or `topic`."""
    host: str | None
    """Host of the receiver."""
    state: str
    """`due`, `done` once it is received, or `failed` once it is given up."""
    attempts: int
    """Number of attempts so far."""
    status: int | None
    """HTTP status of the last attempt."""
    error: str | None
    """Fault of the last attempt."""
    due_at: str | None
    """Time of the next attempt."""
    done_at: str | None
    """Time at which it was received or given up."""
    created_at: str
    """Time of the end of the job."""


class CachedResponse(TypedDict):
    """Answer, and where it came from."""

    response: Any
    """Text of the answer; its JSON if it has no text."""
    cache_hit: bool
    """True if no model was asked."""


class CacheRemoval(TypedDict):
    """Answers that were removed from the cache."""

    deleted: int
    """Number of answers."""


# Answers with the fields of another type besides their own: that type, and its fields that are not shown.
EXTENDED: dict[type, tuple[type[msgspec.Struct], set[str]]] = {
    LoggedCallAnswer: (LoggedCall, set()),
}
