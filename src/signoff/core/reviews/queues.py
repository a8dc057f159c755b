"""Review queues: groups of reviewers, and the order and the filters of the held answers that they decide on."""

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from signoff.core.filters import MAX_PAGE_BYTES
from signoff.core.job import PRIORITIES, Decision, Job
from signoff.errors import BadRequest

ReviewOrder = Literal["urgent", "oldest", "newest"]
# The queue of all reviewers has no name.
ALL_REVIEWERS = ""
MAX_QUEUES = 500
MAX_MEMBERS = 500
MAX_EMAILS = 20
MAX_REASONS = 100
MAX_REASON_LENGTH = 500
# The rank of an answer is one number: first its priority, then its deadline, in microseconds below this bound.
RANK_OF_PRIORITY = 2**52
NO_DEADLINE = RANK_OF_PRIORITY - 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ReviewQueue(msgspec.Struct, frozen=True, kw_only=True):
    """A named queue of held answers, which its members and all admins see."""

    name: str
    """Name, as policies and escalations use it."""
    members: tuple[str, ...] = ()
    """Emails of the reviewers who see it, in alphabetical order."""
    emails: tuple[str, ...] = ()
    """Addresses that get a digest of new, ageing and escalated answers; empty for none."""
    sealed: bytes | None = None
    """Encrypted URL and secret of the webhook that gets the same digests; None for none."""
    webhook_host: str | None = None
    """Host of the webhook, for lists; None without one."""
    digest_seconds: float = 300
    """Seconds between two digests; what comes meanwhile waits for the next one."""
    ageing_seconds: float | None = None
    """Seconds after which an answer that still waits is reported as ageing; None for never."""


class ReviewFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Held answers to list; the conditions are joined by AND."""

    queues: tuple[str, ...]
    """Names of review queues; ALL_REVIEWERS for the queue of all reviewers."""
    target: str | None = None
    """Name of the model or pipeline that was requested; None for any."""
    assignee: str | None = None
    """Email of the reviewer to whom the answer is assigned; None for any."""
    min_age_seconds: float | None = None
    """Time since the answer was held; None for any."""
    order: ReviewOrder = "urgent"
    """`urgent` for the order in which reviewers should decide, else by the time of the hold."""
    after: tuple[int, str] | None = None
    """Cursor: rank (or time of the hold) and id of the last answer of the previous page; None for the first page."""
    limit: int = 50
    """Maximum number of answers in the list."""
    max_bytes: int = MAX_PAGE_BYTES
    """Bytes of requests and answers with which the list ends."""


class NextReview(msgspec.Struct, frozen=True, kw_only=True):
    """The answer that a reviewer wants next."""

    reviewer: str
    """Email of the reviewer, who gets the lease. Answers that are assigned to them come first."""
    queues: tuple[str, ...]
    """Names of the queues to look at, beside those of answers that are assigned to the reviewer."""
    not_user_id: int | None = None
    """Id of a user whose requests are left out; None for none."""
    skip: tuple[str, ...] = ()
    """Ids of jobs to leave out."""


class VoteRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict of a reviewer, as the history shows it."""

    job_id: str
    """Id of the job."""
    round: int
    """Review round."""
    reviewer: str
    """Email of the reviewer."""
    verdict: str
    """`approve`, `redo` or `reject`."""
    at: int
    """Microseconds since 1970, UTC."""


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The decision of a round of a job."""

    job_id: str
    """Id of the job."""
    round: int
    """Review round."""
    decision: Decision
    """The decision."""
    at: int
    """Microseconds since 1970, UTC."""


def rank_of(job: Job) -> int:
    """Return the rank of a held answer: a lower one comes first, and of two equal ones the older job."""
    priority = job.priority if job.review_priority is None else job.review_priority
    deadline = NO_DEADLINE if job.review_deadline is None else job.review_deadline
    return (PRIORITIES.stop - 1 - priority) * RANK_OF_PRIORITY + deadline


def place_of(job: Job, order: ReviewOrder) -> tuple[int, str]:
    """Return the place of a held answer in a list of this order: its rank, or the time of the hold, and its id."""
    return rank_of(job) if order == "urgent" else job.held_at or 0, job.id


def format_cursor(place: int, job_id: str) -> str:
    """Return the cursor of the page after the entry of a job with this place in its list."""
    return f"{place}_{job_id}"


def parse_cursor(text: str) -> tuple[int, str]:
    """Return the place and the id of the job in a cursor. Raises BadRequest."""
    match = re.fullmatch(r"(\d{1,18})_(.{1,100})", text)
    if match is None:
        raise BadRequest("`after` is not a cursor of this list; send the `next` of the page before.")
    return int(match[1]), match[2]


def check_queue(queue: ReviewQueue) -> None:
    """Raise BadRequest if a queue cannot be stored."""
    if not _NAME.fullmatch(queue.name):
        raise BadRequest("`name` must be 1 to 64 letters, digits, `.`, `_` or `-`, and begin with a letter or a digit.")
    if len(queue.members) > MAX_MEMBERS:
        raise BadRequest(f"`members` must have at most {MAX_MEMBERS} entries (got {len(queue.members)}).")
    if len(queue.emails) > MAX_EMAILS:
        raise BadRequest(f"`emails` must have at most {MAX_EMAILS} entries (got {len(queue.emails)}).")
    for email in queue.emails:
        if not re.fullmatch(r"[^\s@<>,;\x00-\x1f]+@[^\s@<>,;\x00-\x1f]+", email):
            raise BadRequest(f"`emails` must be addresses such as ann@example.com (got {email!r}).")
    for name in ("digest_seconds", "ageing_seconds"):
        seconds = getattr(queue, name)
        if seconds is not None and not 1 <= seconds <= 30 * 24 * 3600:
            raise BadRequest(f"`{name}` must be from 1 second to 30 days (got {seconds}).")


def checked_reasons(reasons: Sequence[str]) -> list[str]:
    """Return the reasons for rejections without blanks around them. Raises BadRequest."""
    stripped = [reason.strip() for reason in reasons]
    if len(stripped) > MAX_REASONS:
        raise BadRequest(f"`reasons` must have at most {MAX_REASONS} entries (got {len(stripped)}).")
    if len(set(stripped)) < len(stripped):
        raise BadRequest("`reasons` must be different from each other; remove the duplicates.")
    if not all(0 < len(reason) <= MAX_REASON_LENGTH for reason in stripped):
        raise BadRequest(f"Each of `reasons` must be 1 to {MAX_REASON_LENGTH} characters long.")
    return stripped
