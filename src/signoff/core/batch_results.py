"""Lines of the output of a batch, and the counts of them, in the forms of OpenAI's and of Anthropic's API."""

from collections import Counter
from typing import Any

import msgspec

from signoff.core.batch import BATCH_CANCELLED, BATCH_EXPIRED, Batch, BatchTotals
from signoff.core.dialects.messages import message_error_type
from signoff.core.job import WITHOUT_ANSWER, Job, JobError
from signoff.errors import kind_of

_CUT_OFF = {BATCH_EXPIRED.code: "expired", BATCH_CANCELLED.code: "cancelled"}


class _CustomId(msgspec.Struct):
    custom_id: str


def metadata_of(custom_id: str) -> bytes:
    """Return the metadata of the job of a line, as JSON: the line's `custom_id`."""
    return msgspec.json.encode(_CustomId(custom_id))


def custom_id_of(job: Job) -> str:
    """Return the `custom_id` of the line that a job is for."""
    return msgspec.json.decode(job.metadata, type=_CustomId).custom_id


class BatchCounter:
    """Counter of the results of a batch."""

    def __init__(self) -> None:
        self._ends = Counter[str]()
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0

    def add(self, job: Job) -> None:
        """Count an ended job."""
        self._ends[end_of(job)] += 1
        self._prompt_tokens += job.prompt_tokens
        self._cached_tokens += job.cached_tokens
        self._completion_tokens += job.completion_tokens

    @property
    def count(self) -> int:
        """Number of requests so far."""
        return self._ends.total()

    def add_unsubmitted(self, error: JobError | None, count: int = 1) -> None:
        """Count requests without a job: those that `error` cut off, or that failed as they are lost, if it is None."""
        self._ends["failed" if error is None else _CUT_OFF[error.code]] += count

    def totals(self) -> BatchTotals:
        """Return all counts."""
        return BatchTotals(
            total=self._ends.total(),
            completed=self._ends["completed"],
            failed=self._ends["failed"],
            expired=self._ends["expired"],
            cancelled=self._ends["cancelled"],
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
        )


def end_of(job: Job) -> str:
    """Return the field of `BatchTotals` in which an ended job counts."""
    if job.status == "success":
        return "completed"
    return _CUT_OFF.get(job.error.code if job.error else "", "failed")


def result_of_job(batch: Batch, job: Job) -> bytes:
    """Return the output line of an ended job, with its line feed."""
    custom_id = custom_id_of(job)
    if job.status == "success":
        answer = msgspec.Raw(job.response or b"null")
        if batch.api == "anthropic":
            return _encode({"custom_id": custom_id, "result": {"type": "succeeded", "message": answer}})
        return _openai_line(job.id, custom_id, {"status_code": 200, "request_id": job.id, "body": answer}, None)
    error = job.error or WITHOUT_ANSWER
    if error.code in _CUT_OFF:
        return result_without_job(batch, batch_line_id(batch, job.batch_line or 0), custom_id, error)
    if batch.api == "anthropic":
        fault = {"type": message_error_type(error.status), "message": error.message}
        whole = {"type": "error", "error": fault, "request_id": job.id}
        return _encode({"custom_id": custom_id, "result": {"type": "errored", "error": whole}})
    param = None if error.param is msgspec.UNSET else error.param
    kind = kind_of(error.code, error.status)
    body = {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}
    response = {"status_code": error.status, "request_id": job.id, "body": body}
    return _openai_line(job.id, custom_id, response, error)


def result_without_job(batch: Batch, line_id: str, custom_id: str, error: JobError) -> bytes:
    """Return the output line of a request that the end of the window, or a cancellation, cut off."""
    if batch.api == "anthropic":
        kind = "expired" if error.code == BATCH_EXPIRED.code else "canceled"
        return _encode({"custom_id": custom_id, "result": {"type": kind}})
    return _openai_line(line_id, custom_id, None, error)


def batch_line_id(batch: Batch, number: int) -> str:
    """Return the id of a line without a job of its own."""
    return f"{batch.number}_{number}"


def _openai_line(line_id: str, custom_id: str, response: dict[str, Any] | None, error: JobError | None) -> bytes:
    fault = None if error is None else {"code": error.code, "message": error.message}
    return _encode({"id": f"batch_req_{line_id}", "custom_id": custom_id, "response": response, "error": fault})


def _encode(line: dict[str, Any]) -> bytes:
    """Return `line` as JSON on one line; line breaks of an answer are between JSON tokens, so they become blanks."""
    encoded = msgspec.json.encode(line)
    return (
        encoded.replace(b"\n", b" ").replace(b"\r", b" ") if b"\n" in encoded or b"\r" in encoded else encoded
    ) + b"\n"
