"""Digests of review queues: what is new, ageing or escalated, by webhook and by e-mail."""

from typing import Literal

import msgspec

from signoff.core.reviews.queues import ReviewQueue

NoticeKind = Literal["webhook", "email"]
# Answers of each kind that a digest names; beyond them it says that there are more.
MAX_NAMED = 20


class NewsItem(msgspec.Struct, frozen=True, kw_only=True):
    """A held answer in a digest, which has no text of the request or of the answer."""

    job_id: str
    """Id of the job."""
    target: str
    """Name of the model or pipeline that was requested."""
    at: int
    """Time of the hold, or of the escalation, in microseconds since 1970, UTC."""


class QueueNews(msgspec.Struct, frozen=True, kw_only=True):
    """Answers in a queue that a digest for a period of time reports."""

    queue: ReviewQueue
    """The queue."""
    since: int
    """Start of the period, in microseconds since 1970, UTC: the end of the period of the last digest."""
    until: int
    """End of the period."""
    new: tuple[NewsItem, ...] = ()
    """Answers that were held in the period and still wait; at most one more than MAX_NAMED, the earliest."""
    ageing: tuple[NewsItem, ...] = ()
    """Answers that reached the age `ageing_seconds` in the period and still wait."""
    escalated: tuple[NewsItem, ...] = ()
    """Answers that were escalated to the queue in the period and still wait."""

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to report."""
        return not (self.new or self.ageing or self.escalated)


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """A digest to one receiver, as it is stored until it is received or given up."""

    id: str
    """Id of the message, the same at every attempt."""
    queue: str
    """Name of the queue, whose receivers get it as they are when it is sent."""
    kind: NoticeKind
    """Way to the receiver."""
    body: bytes
    """Message as JSON."""
    attempt: int = 0
    """Number of attempts that were started."""


class NoticeOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one attempt to send a digest."""

    after_seconds: float | None = None
    """Seconds until the next attempt; None if it was received, or is given up."""
