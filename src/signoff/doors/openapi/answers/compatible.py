"""Objects in the forms of OpenAI's and Anthropic's APIs that this server makes itself."""

from typing import Any, Generic, Literal, TypedDict, TypeVar

T = TypeVar("T")


class OpenAIModel(TypedDict):
    """Model, prompt or pipeline that a request can name."""

    id: str
    """Name."""
    object: Literal["model"]
    """`model`."""
    created: int
    """Seconds since 1970."""
    owned_by: str
    """Owner."""


class OpenAIModels(TypedDict):
    """Models that a request can name."""

    object: Literal["list"]
    """`list`."""
    data: list[OpenAIModel]
    """Models."""


class OpenAIFile(TypedDict):
    """File."""

    id: str
    """Id of the file."""
    object: Literal["file"]
    """`file`."""
    bytes: int
    """Size in bytes."""
    created_at: int
    """Seconds since 1970."""
    expires_at: int | None
    """Seconds since 1970; null for no end."""
    filename: str
    """Name that the upload gave."""
    purpose: str
    """Purpose, such as `batch`."""
    status: str
    """`processed`."""
    status_details: str | None
    """Null."""


class OpenAIPage(TypedDict, Generic[T]):
    """Page of a list in the form of OpenAI's API."""

    object: Literal["list"]
    """`list`."""
    data: list[T]
    """Objects of the page."""
    first_id: str | None
    """Id of the first object."""
    last_id: str | None
    """Id of the last object; pass it as `after` to get the next page."""
    has_more: bool
    """True if more may follow."""


class FileRemoval(TypedDict):
    """File that was deleted."""

    id: str
    """Id of the file."""
    object: Literal["file"]
    """`file`."""
    deleted: bool
    """True."""


class BatchCounts(TypedDict):
    """Number of requests of a batch."""

    total: int
    """All requests."""
    completed: int
    """Requests with an answer."""
    failed: int
    """Requests without an answer."""


class OpenAIBatch(TypedDict):
    """Batch of requests in the form of OpenAI's API; times are seconds since 1970."""

    id: str
    """Id of the batch."""
    object: Literal["batch"]
    """`batch`."""
    endpoint: str
    """Path of all requests."""
    model: str | None
    """Model of the requests, if they have one."""
    errors: dict[str, Any] | None
    """Faults of the input file."""
    input_file_id: str
    """File with the requests."""
    completion_window: str
    """`24h`."""
    status: str
    """State, such as `in_progress` or `completed`."""
    output_file_id: str | None
    """File with the answers."""
    error_file_id: str | None
    """File with the errors."""
    created_at: int | None
    """Creation."""
    in_progress_at: int | None
    """Start."""
    expires_at: int | None
    """End of the completion window."""
    finalizing_at: int | None
    """End of the last request."""
    completed_at: int | None
    """End."""
    failed_at: int | None
    """Failure of the input file."""
    expired_at: int | None
    """Expiry."""
    cancelling_at: int | None
    """Request to cancel it."""
    cancelled_at: int | None
    """End after that."""
    request_counts: BatchCounts
    """Number of requests."""
    usage: dict[str, Any] | None
    """Tokens, once it has ended."""
    metadata: dict[str, str] | None
    """Names and values that the caller chose."""


class MessageBatch(TypedDict):
    """Batch of messages in the form of Anthropic's API."""

    id: str
    """Id of the batch."""
    type: Literal["message_batch"]
    """`message_batch`."""
    processing_status: str
    """`in_progress`, `canceling` or `ended`."""
    request_counts: dict[str, int]
    """Number of requests by their state."""
    created_at: str
    """Creation."""
    expires_at: str
    """End of the completion window."""
    ended_at: str | None
    """End."""
    cancel_initiated_at: str | None
    """Request to cancel it."""
    archived_at: str | None
    """Time from which the results do not exist any more; null before it."""
    results_url: str | None
    """Address of the results, once it has ended; null if there are none, or not any more."""


class MessageBatchPage(TypedDict):
    """Page of batches in the form of Anthropic's API."""

    data: list[MessageBatch]
    """Batches of the page."""
    has_more: bool
    """True if more may follow."""
    first_id: str | None
    """Id of the first batch."""
    last_id: str | None
    """Id of the last batch; pass it as `after_id` to get the next page."""


class MessageBatchRemoval(TypedDict):
    """Batch that was deleted."""

    id: str
    """Id of the batch."""
    type: Literal["message_batch_deleted"]
    """`message_batch_deleted`."""
