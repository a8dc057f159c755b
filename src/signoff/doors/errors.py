"""Formats of error responses: problem details, `{"detail", "code"}`, and the headers of both."""

from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import Any

from signoff.core.content_coding import ACCEPTED_CODINGS
from signoff.doors.http import Header
from signoff.errors import (
    BadPipeline,
    JobPending,
    LimitReached,
    MethodNotAllowed,
    ModelAnswered,
    ReviewPending,
    SignoffError,
    Unauthorized,
    UnsupportedEncoding,
)

PROBLEM = "application/problem+json"


def problem(error: SignoffError) -> dict[str, Any]:
    """Return `error` as problem details (RFC 9457), the format of the native API."""
    details: dict[str, Any] = {
        "type": "about:blank",
        "title": _phrase(error.status),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
    }
    if isinstance(error, BadPipeline):
        details |= {"position": error.at, "line": error.line, "column": error.column}
    return details if error.job_id is None else details | {"job_id": error.job_id}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def detail(error: SignoffError) -> dict[str, Any]:
    """Return `error` as `{"detail", "code"}`, with `job_id` if it has one: the format of the job and `predict` APIs."""
    body: dict[str, Any] = {"detail": error.message, "code": error.code}
    return body if error.job_id is None else body | {"job_id": error.job_id}


def error_headers(error: SignoffError) -> Mapping[str, str]:
    """Return the headers of an error response, the same in all formats."""
    headers: dict[str, str] = {}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed) and error.allow:
        headers["allow"] = error.allow
    if isinstance(error, UnsupportedEncoding):
        headers["accept-encoding"] = ACCEPTED_CODINGS
    if error.job_id is not None:
        headers["location"] = f"/api/jobs/{error.job_id}"
    # The SDKs of OpenAI and Anthropic retry these statuses by themselves; here that would only repeat the work.
    if not error.retryable and (error.status in {408, 409, 429} or error.status >= 500):
        headers["x-should-retry"] = "false"
    if isinstance(error, LimitReached):  # without a time, waiting does not help
        if error.retry_after_seconds is not None:
            headers["retry-after"] = str(max(1, ceil(error.retry_after_seconds)))
    elif (error.status in {429, 503} and error.retryable) or isinstance(error, ReviewPending | JobPending):
        headers["retry-after"] = str(max(1, ceil(error.retry_after_seconds or 0)))
    if isinstance(error, ModelAnswered):
        headers |= _upstream_headers(error)
    return headers


def _upstream_headers(error: ModelAnswered) -> dict[str, str]:
    """Return what the model told about its limits: its own headers, and the time to wait in both usual forms."""
    headers = dict(error.headers)
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(ceil(error.retry_after_seconds))
        headers["retry-after-ms"] = str(ceil(error.retry_after_seconds * 1000))
    return headers


def raw_error_headers(error: SignoffError) -> list[Header]:
    """Return `error_headers` in the form of plain ASGI."""
    return [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
