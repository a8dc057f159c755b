"""Errors in Anthropic's format: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

Source: Anthropic's API reference, "Errors".
"""

from typing import Any, Literal

import msgspec

from signoff.core.api_paths import MESSAGES
from signoff.core.dialects.messages import message_error_type, message_event
from signoff.errors import ModelAnswered, SignoffError


class _Fault(msgspec.Struct):
    type: str
    message: str


class _UpstreamBody(msgspec.Struct):
    type: Literal["error"]
    error: _Fault


def is_anthropic(path: str) -> bool:
    """Return True if the path of a request belongs to Anthropic's API."""
    rest = path.partition(MESSAGES)[2]
    return path.endswith(MESSAGES) or rest.startswith("/")


def error_body(error: SignoffError, request_id: str | None) -> bytes:
    """Return the error with our code and the job's id, or a model's own error unchanged if it has this format."""
    if type(error) is ModelAnswered and _has_this_format(error.body):
        return error.body
    fields: dict[str, Any] = {"type": message_error_type(error.status), "message": error.message, "code": error.code}
    if error.job_id is not None:
        fields["job_id"] = error.job_id
    return msgspec.json.encode({"type": "error", "error": fields, "request_id": request_id})


def error_event(error: SignoffError) -> bytes:
    """Return the error as the last event of a stream."""
    body: dict[str, Any] = msgspec.json.decode(error_body(error, None))
    return message_event(body)


def _has_this_format(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=_UpstreamBody)
    except (ValueError, RecursionError):
        return False
    return True
