"""Batches of requests, and the files that they are read from and written to."""

import re
from typing import Literal

import msgspec

from signoff.core.access import Caller
from signoff.core.job import JobError
from signoff.core.times import SECOND_US

BatchApi = Literal["openai", "anthropic"]
BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
BatchOutcome = Literal["completed", "expired", "cancelled"]
ENDED: frozenset[BatchStatus] = frozenset({"failed", "completed", "expired", "cancelled"})
UNENDED: tuple[BatchStatus, ...] = ("validating", "in_progress", "finalizing", "cancelling")

BATCH_PRIORITY = 1
WINDOW_SECONDS = 24 * 3600
MAX_LINES = 50_000
# Requests of a batch of messages, as Anthropic's API reference says.
MAX_MESSAGES = 100_000
# Batches of one user that have not ended. A process looks at each of them again every few seconds.
MAX_OPEN_BATCHES = 500
# OpenAI deletes the files of batches after 30 days, unless the caller says otherwise.
FILE_SECONDS = 30 * 24 * 3600
# Lifetimes that a caller may set for a file, and the times that they may begin at.
EXPIRY_ANCHORS = ("created_at",)
EXPIRY_SECONDS = range(3600, FILE_SECONDS + 1)

# Purposes of OpenAI's API that a caller may give a file, that of the server's own output, and those of Anthropic's
# batches, whose files are not listed.
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
BATCH_INPUT, BATCH_OUTPUT = "batch", "batch_output"
MESSAGES_INPUT, MESSAGES_OUTPUT = "message_batch", "message_batch_output"
LISTED_PURPOSES = (*PURPOSES, BATCH_OUTPUT)

_FILE_ID = re.compile(r"file-[0-9a-f]{32}(-[a-z]+)?")

BATCH_EXPIRED = JobError(
    code="batch_expired",
    message="This request could not be executed before the completion window expired.",
    status=408,
)
BATCH_CANCELLED = JobError(
    code="batch_cancelled", message="This request was not executed, as its batch was cancelled.", status=409
)


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a user. Times are microseconds since 1970, UTC, by the clock of the database."""

    id: str
    """`file-` and a UUIDv7 in hexadecimal; of the output of a batch, the id of the batch and the kind of output."""
    user_id: int
    """Owner."""
    filename: str
    """Name that the owner gave it; it is never a path on this server."""
    purpose: str
    """Purpose in the words of OpenAI's API."""
    size_bytes: int | None = None
    """Size; None while the file is being uploaded."""
    created_at: int = 0
    """Time of the upload."""
    expires_at: int | None = None
    """Time from which the file does not exist any more; None for no end."""

    @property
    def blob(self) -> str:
        """Name of the blob with the contents."""
        return f"files/{self.id}"


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """A fault of an input file."""

    code: str
    """Code in the words of OpenAI's API, such as `duplicate_custom_id`."""
    message: str
    """Description for the caller."""
    line: int | None = None
    """Number of the line, from 1; None if the fault is not in a line."""
    param: str | None = None
    """Member of the line that is at fault; None if it is not about one."""


class BatchTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of a batch: of its requests by their end, and of the tokens of their answers."""

    total: int = 0
    """Number of requests."""
    completed: int = 0
    """Number of requests with an answer."""
    failed: int = 0
    """Number of requests that failed by themselves."""
    expired: int = 0
    """Number of requests that the end of the window cut off."""
    cancelled: int = 0
    """Number of requests that a cancellation of the batch cut off."""
    prompt_tokens: int = 0
    """Sum of the prompt tokens of all attempts."""
    cached_tokens: int = 0
    """Number of prompt tokens that upstreams read from their own caches."""
    completion_tokens: int = 0
    """Sum of the completion tokens of all attempts."""

    @property
    def unanswered(self) -> int:
        """Number of ended requests without an answer: those in the error file."""
        return self.failed + self.expired + self.cancelled


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A file of requests that are answered in the background.

    Times (`…_at`, `lease_until`) are microseconds since 1970, UTC, by the clock of the database.
    """

    id: str
    """`batch_` or `msgbatch_`, and a UUIDv7 in hexadecimal, so that ids order batches by age."""
    user_id: int
    """Owner."""
    api: BatchApi
    """API that the batch was made with, which defines the form of its results."""
    caller: Caller
    """Caller who made the batch, with the rights of that time, which are checked again while the batch runs."""
    endpoint: str
    """Path of all requests, such as `/v1/chat/completions`."""
    input_file_id: str
    """File with the requests, one a line."""
    status: BatchStatus = "validating"
    """State, in the words of OpenAI's API."""
    metadata: dict[str, str] | None = None
    """Pairs of the caller's own."""
    output_seconds: int | None = FILE_SECONDS
    """Lifetime of the output files; None for no end."""
    idempotency_key: str | None = None
    """`Idempotency-Key` of the request; None for none, or once another batch has it."""
    fingerprint: str | None = None
    """Hash of the request, by which a retry with the same key is recognised."""
    webhook: bytes | None = None
    """Encrypted URL and secret of the receiver of the end; None for none."""
    webhook_host: str | None = None
    """Host of that receiver."""
    model: str | None = None
    """Name of the model of all requests; None before it is known, or if they name several."""
    errors: tuple[BatchError, ...] = ()
    """Faults for which the batch failed."""
    total: int | None = None
    """Number of requests; None before the file was checked."""
    next_line: int = 1
    """Number of the first line whose job is not stored yet."""
    next_byte: int = 0
    """Position of that line in the input file."""
    outcome: BatchOutcome | None = None
    """State that the batch ends in; None before that is known."""
    totals: BatchTotals | None = None
    """Numbers at the end; None before it. Until then, they are counted."""
    output_file_id: str | None = None
    """File with the answers; None if there are none."""
    error_file_id: str | None = None
    """File with the requests that have no answer; None if there are none."""
    created_at: int = 0
    """Time of creation."""
    expires_at: int = 0
    """Time at which the completion window ends."""
    in_progress_at: int | None = None
    """Time at which the file was found valid."""
    finalizing_at: int | None = None
    """Time at which all requests had ended."""
    completed_at: int | None = None
    """Time at which the results were complete."""
    failed_at: int | None = None
    """Time at which the file was found invalid."""
    expired_at: int | None = None
    """Time at which the results of an expired batch were complete."""
    cancelling_at: int | None = None
    """Time at which the owner cancelled the batch."""
    cancelled_at: int | None = None
    """Time at which the results of a cancelled batch were complete."""
    due_at: int = 0
    """Time from which a process may go on with the batch."""
    lease: str | None = None
    """Lease token of the process that goes on with the batch; None while none does."""
    lease_until: int | None = None
    """Time at which the lease ends unless it is renewed."""

    @property
    def has_ended(self) -> bool:
        """True if the batch never changes again."""
        return self.status in ENDED

    @property
    def ended_at(self) -> int | None:
        """Time at which the batch ended; None before it."""
        ends = (self.completed_at, self.expired_at, self.cancelled_at, self.failed_at)
        return next((at for at in ends if at is not None), None)

    @property
    def output_ends_at(self) -> int | None:
        """Time from which the output files do not exist any more; None for no end, before it is known, and for none."""
        if self.output_file_id is None or self.ended_at is None or self.output_seconds is None:
            return None
        return self.ended_at + self.output_seconds * SECOND_US

    @property
    def number(self) -> str:
        """The id without its prefix."""
        return self.id.rpartition("_")[2]


def is_batch_id(text: str) -> bool:
    """Return True if `text` is the id of a batch, and not that of a job."""
    return text.startswith(("batch_", "msgbatch_"))


def is_file_id(text: str) -> bool:
    """Return True if `text` has the form of the ids of files."""
    return _FILE_ID.fullmatch(text) is not None


class FileFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Files of a user to list, in the order of their ids.

    That is the order of their uploads; the output of a batch stands where the batch was created.
    """

    user_id: int
    """Owner."""
    purpose: str | None = None
    """Purpose of the files; None for all of LISTED_PURPOSES."""
    after_id: str | None = None
    """Cursor: the id of the last file of the previous page, which may be deleted; None for the first page."""
    newest_first: bool = True
    """False to order the list from the oldest file to the newest."""
    limit: int = 100
    """Maximum number of files in the list."""


class BatchFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Batches to list, from the newest to the oldest."""

    user_id: int | None
    """Owner; None for all users."""
    api: BatchApi
    """API that the batches were made with."""
    after_id: str | None = None
    """Cursor: only batches that are older than this one; None for no bound."""
    before_id: str | None = None
    """Cursor: only batches that are newer than this one, the oldest of them; None for no bound."""
    limit: int = 20
    """Maximum number of batches in the list."""
