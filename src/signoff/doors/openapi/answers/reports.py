"""Reports, limits, prices and the audit log."""

from typing import Any, TypedDict

import msgspec

from signoff.core.audit import AuditEntry
from signoff.doors.openapi.answers.listing import ObjectList


class ReviewTotals(TypedDict):
    """Sums over decisions that took effect."""

    decisions: int
    """Number of decisions."""
    approved: int
    """Number of approvals."""
    delivered: int
    """Number of answers that left."""
    edited: int
    """Number of approvals with an edit."""
    redone: int
    """Number of answers that were asked for again."""
    rejected: int
    """Number of rejections."""
    average_verdict_seconds: float | None
    """Time from the hold to the verdict."""
    reviewer_seconds: float
    """Time for which reviewers had the answers open."""
    reviewer_seconds_per_delivered_answer: float | None
    """The same for each delivered answer."""
    agreement: float | None
    """Share of equal votes."""
    kappa: float | None
    """Cohen's kappa of the votes."""
    planted: int
    """Number of planted items."""
    caught: int
    """Number of those that were caught."""
    catch_rate_lowest: float | None
    """Lower end of the interval of 95 % for the share that is caught."""
    catch_rate_highest: float | None
    """Upper end of that interval."""


class ReviewReport(TypedDict):
    """Figures of reviews; each row also has the dimensions that were asked for."""

    data: list[dict[str, Any]]
    """Rows: the dimensions, and the members of `total`."""
    total: ReviewTotals
    """Sums over all rows."""
    next: int | None
    """`offset` of the next page."""


class UsageSummary(TypedDict):
    """Sums of usage."""

    jobs: int
    """Number of jobs."""
    unpriced_jobs: int
    """Number of those whose model has no price."""
    prompt_tokens: int
    """Tokens of requests."""
    cached_tokens: int
    """Tokens of requests that upstreams had cached."""
    completion_tokens: int
    """Tokens of answers."""
    cost: str
    """Cost in dollars."""
    average_queued_seconds: float
    """Time in the queue."""
    average_first_byte_seconds: float
    """Time to the first byte."""
    average_answer_seconds: float
    """Time to the end of the answer."""


class UsageReport(TypedDict):
    """Usage; each row also has the dimensions that were asked for."""

    data: list[dict[str, Any]]
    """Rows: the dimensions, and the members of `total`."""
    total: UsageSummary
    """Sums over all rows."""
    next: int | None
    """`offset` of the next page."""


class LatencyReport(TypedDict):
    """Latencies by a dimension."""

    data: list[dict[str, Any]]
    """Rows: the dimension, `jobs`, and percentiles in microseconds, such as `answer_p95_us`."""


class PriceAnswer(TypedDict):
    """Price of a model in dollars."""

    model: str
    """Name of the model; it may end in `*`."""
    valid_from: str
    """Time from which it is valid."""
    input: str
    """Price of a million prompt tokens."""
    output: str
    """Price of a million completion tokens."""
    cached_input: str | None
    """Price of a million prompt tokens from the upstream's cache; null for that of the others."""
    request: str
    """Price of a request."""


class LimitAmounts(TypedDict):
    """Numbers of a limit, or of its use; null for no limit."""

    requests_per_minute: int | None
    """Requests in any 60 seconds."""
    tokens_per_minute: int | None
    """Tokens in any 60 seconds."""
    parallel: int | None
    """Requests at the same time."""
    tokens_per_day: int | None
    """Tokens in a day."""
    tokens_per_month: int | None
    """Tokens in a month."""
    cost_per_day: str | None
    """Dollars in a day."""
    cost_per_month: str | None
    """Dollars in a month."""


class LimitAnswer(LimitAmounts):
    """Limit with its use."""

    who: str
    """`all`, `each`, `user:EMAIL` or `token:ID`."""
    model: str | None
    """Model whose use is limited; null for all."""
    used: LimitAmounts | None
    """Present use; null for a limit that each subject has for itself."""


class CallerName(TypedDict):
    """Caller."""

    user: str
    """E-mail address."""
    token: int
    """Id of the token."""


class LimitList(ObjectList[LimitAnswer]):
    """Limits with their use."""

    data: list[LimitAnswer]
    """Limits that apply."""
    you: CallerName
    """Caller, as limits name them."""


class LimitDenials(TypedDict):
    """Number of requests that a limit refused, or made wait."""

    limit: str
    """Name of the limit."""
    kind: str
    """Number of the limit that was reached."""
    user: str
    """E-mail address of the user."""
    token: int | None
    """Id of the token."""
    refused: int
    """Number of requests."""
    hour: str
    """Hour of the last one."""


class AuditAnswer(TypedDict):
    """Entry of the audit log."""

    at: str
    """Time of the change."""


# Answers with the fields of another type besides their own: that type, and its fields that are not shown.
EXTENDED: dict[type, tuple[type[msgspec.Struct], set[str]]] = {
    AuditAnswer: (AuditEntry, set()),
}
