"""Answers about reviews, policies and receipts."""

from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from signoff.core.job import Status, Verdict
from signoff.core.reviews.bulk import BulkItem
from signoff.core.reviews.rules import ReviewPolicy
from signoff.doors.openapi.answers.jobs import JobUsage
from signoff.work.reviews.history import QueueDepth


class PendingDecision(TypedDict):
    """Verdict that has not taken effect yet."""

    verdict: Verdict
    """The verdict."""
    reviewer: str
    """E-mail address of the reviewer."""
    reason: str | None
    """Reason of the reviewer."""
    release_at: str
    """Time at which it takes effect; until then it can be undone."""


class ReviewState(TypedDict):
    """State of a job after a change of its review."""

    job_id: str
    """Id of the job."""
    status: Status
    """Status of the job."""
    round: int
    """Number of the review round."""
    queue: str | None
    """Review queue; null for that of all reviewers."""
    assignee: str | None
    """E-mail address of the reviewer whom it is assigned to."""
    decision: PendingDecision | None
    """Verdict that can be undone."""


class ReviewSummary(TypedDict):
    """Held answer in a list."""

    job_id: str
    """Id of the job."""
    round: int
    """Number of the review round, which a verdict must name."""
    queue: str | None
    """Review queue; null for that of all reviewers."""
    priority: int
    """Priority on the desk, from 0 to 9; 9 goes first."""
    deadline: str | None
    """Time at which the review is overdue."""
    held_at: str | None
    """Time since which the answer is held."""
    created_at: str
    """Time of the request."""
    model: str | None
    """Name that the request gave."""
    answered_by: str | None
    """Model that answered."""
    path: str
    """Endpoint of the request."""
    assignee: str | None
    """E-mail address of the reviewer whom it is assigned to."""
    opened_by: str | None
    """E-mail address of the reviewer who has it open."""
    opened_until: str | None
    """Time until which nobody else can decide."""
    votes_needed: int
    """Number of reviewers who must agree."""
    signals: dict[str, Any]
    """Signals that the policy looked at."""


class TranscriptPart(TypedDict):
    """Message, member or field of a request."""

    role: str
    """Role of the message, or name of the member."""
    text: str
    """Its text; JSON if it is not a text."""


class ReviewDraft(TypedDict):
    """Edits that are saved without a verdict."""

    payload: Any
    """Edited request; null if it is not edited."""
    response: Any
    """Edited answer; null if it is not edited."""


class ReviewVote(ReviewDraft):
    """Vote of one of several reviewers."""

    reviewer: str
    """E-mail address of the reviewer."""
    verdict: Verdict
    """The verdict."""
    reason: str | None
    """Reason of the reviewer."""
    at: str
    """Time of the vote."""


class ReviewItem(ReviewSummary):
    """Held answer with everything that a reviewer signs off."""

    user: str | None
    """E-mail address of the caller."""
    door: str
    """Entry point of the request."""
    prompt: str | None
    """Name of the prompt that was rendered."""
    prompt_version: int | None
    """Version of that prompt."""
    run: str | None
    """Id of the run that this step belongs to."""
    transcript: list[TranscriptPart]
    """Everything that the request contains."""
    new_transcript: list[TranscriptPart] | None
    """Everything that the edited request of the draft contains; null if it is not edited."""
    payload: Any
    """Body of the request."""
    response: Any
    """Answer of the model."""
    answer: str
    """Text of the answer."""
    draft: ReviewDraft | None
    """Draft."""
    draft_answer: str | None
    """Text of the edited answer."""
    details: str | None
    """Answer as JSON, if it says more than one text."""
    tool_calls: list[dict[str, Any]]
    """Calls of tools that the answer makes."""
    usage: JobUsage | None
    """Tokens."""
    cost: str | None
    """Cost in dollars."""
    decision: PendingDecision | None
    """Verdict that can be undone."""
    votes_cast: int
    """Number of votes so far."""
    votes: list[ReviewVote]
    """Votes, for the reviewer who decides between several."""


class QueueDepthAnswer(TypedDict):
    """Number of answers that wait in a queue."""

    oldest_held_at: str | None
    """Time since which the oldest of them is held."""


class DecisionAnswer(TypedDict):
    """Decision of a round."""

    round: int
    """Number of the round."""
    verdict: Verdict
    """The verdict."""
    reviewer: str
    """E-mail address of the reviewer."""
    reason: str | None
    """Reason of the reviewer."""
    edited: bool
    """True if the reviewer edited the request or the answer."""
    at: str
    """Time of the decision."""


class PastVerdictAnswer(TypedDict):
    """Verdict of the caller, and what became of it."""

    job_id: str
    """Id of the job."""
    round: int
    """Number of the round."""
    verdict: Verdict
    """The verdict."""
    at: str
    """Time of the verdict."""
    status: Status | None
    """Status of the job; null if it was deleted."""
    decision: DecisionAnswer | None
    """Decision of that round."""
    changed_afterwards: list[DecisionAnswer]
    """Decisions of later rounds."""


class BulkAnswer(TypedDict):
    """Bulk decision."""

    id: str
    """Id of the bulk decision."""
    verdict: Verdict
    """Verdict on each answer."""
    reason: str | None
    """Reason of the reviewer."""
    count: int
    """Number of selected answers."""
    decided: int
    """Number of those that were decided."""
    skipped: int
    """Number of those that had changed."""
    undone: int
    """Number of those whose decision was undone."""
    examined: int
    """Number of held answers that the selection looked at."""
    is_whole: bool
    """True if it looked at all held answers of the queues."""
    items: list[BulkItem]
    """Selected answers."""


class ReviewQueueAnswer(TypedDict):
    """Review queue. Its settings are for admins."""

    name: str
    """Name of the queue."""
    members: list[str]
    """E-mail addresses of its reviewers."""
    emails: NotRequired[list[str]]
    """Receivers of its digests."""
    webhook_host: NotRequired[str | None]
    """Host of the webhook for its digests."""
    digest_seconds: NotRequired[float]
    """Seconds between digests."""
    ageing_seconds: NotRequired[float | None]
    """Age from which on an answer is in the digest."""


class Reasons(TypedDict):
    """Reasons for rejections."""

    reasons: list[str]
    """Reasons in their order."""


class PolicyAnswer(TypedDict):
    """Version of a review policy."""

    created_at: str
    """Time at which the version was saved."""


class PlantedAnswer(TypedDict):
    """Planted item."""

    id: int
    """Id of the item."""
    path: str
    """Endpoint of the request."""
    payload: Any
    """Request."""
    response: Any
    """Answer that is known to be wrong."""


class ReceiptAnswer(TypedDict):
    """Receipt of a decision."""

    receipt: dict[str, Any]
    """The receipt."""
    line: str
    """The receipt as it was signed."""
    salt: str | None
    """Salt to check its digests, in hexadecimal; null after the contents of the job were deleted."""


class ReceiptKey(TypedDict):
    """Public key of receipts."""

    algorithm: Literal["Ed25519"]
    """Algorithm of the signatures."""
    id: str
    """Id of the key."""
    public_key: str
    """The key in base64."""


# Answers with the fields of another type besides their own: that type, and its fields that are not shown.
EXTENDED: dict[type, tuple[type[msgspec.Struct], set[str]]] = {
    QueueDepthAnswer: (QueueDepth, set()),
    PolicyAnswer: (ReviewPolicy, {"user_id", "token_id"}),
}
