"""Errors in OpenAI's format: `{"error": {"message", "type", "param", "code"}}`, with codes that are texts."""

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any, cast

import msgspec

from signoff.core import sse
from signoff.core.api_paths import MESSAGES, RESPONSES
from signoff.core.dialects.response import response_event
from signoff.core.limits import Gauge
from signoff.doors.errors import raw_error_headers
from signoff.doors.http import JSON, Header, Send, send_bytes
from signoff.doors.openai import anthropic_errors
from signoff.errors import LimitReached, ModelAnswered, SignoffError, Unauthorized

# OpenAI's code of an error with status 401.
INVALID_KEY = "invalid_api_key"


async def send_error(
    send: Send, error: SignoffError, headers: Iterable[Header] = (), *, body: bytes | None = None
) -> None:
    """Send an error in OpenAI's format, or as `body`.

    A model's own error is passed on as it is, except that a code which is a number becomes a text.
    """
    error_headers = raw_error_headers(error)
    if isinstance(error, LimitReached):
        error_headers.extend(gauge_headers(error.gauges))
        if error.retry_after_seconds is not None:
            error_headers.append((b"retry-after-ms", str(ceil(error.retry_after_seconds * 1000)).encode()))
    names = {name for name, _ in error_headers}  # headers of the model about its limits replace ours
    others = [each for each in headers if each[0] not in names]
    await send_bytes(send, error.status, body or _body(error), JSON, [*error_headers, *others])


def gauge_headers(gauges: Mapping[str, Gauge]) -> list[Header]:
    """Return the `x-ratelimit-` headers: limit per minute, rest, and time until all of it is available again."""
    headers = list[Header]()
    for unit, (limit, remaining, reset_seconds) in gauges.items():
        headers.append((f"x-ratelimit-limit-{unit}".encode(), str(limit).encode()))
        headers.append((f"x-ratelimit-remaining-{unit}".encode(), str(remaining).encode()))
        headers.append((f"x-ratelimit-reset-{unit}".encode(), _duration(reset_seconds).encode()))
    return headers


def _duration(seconds: float) -> str:
    """Return a duration as OpenAI writes it: `120ms`, `8.64s`, `6m0s`."""
    milliseconds = ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"


def error_event(error: SignoffError, path: str) -> bytes:
    """Return the error as the last event of a stream of `path`; two APIs have an event type for it."""
    if path == MESSAGES:
        return anthropic_errors.error_event(error)
    body = _body(error)
    if path != RESPONSES:
        return sse.event(b"".join(body.splitlines()))
    payload: dict[str, Any] = msgspec.json.decode(body)
    fields = cast("dict[str, Any]", payload["error"])
    members = {name: fields.get(name) for name in ("code", "message", "param")}
    return response_event({"type": "error"} | members | payload)


def _body(error: SignoffError) -> bytes:
    if type(error) is ModelAnswered and (upstream_body := _upstream_body(error.body)) is not None:
        return upstream_body
    code = INVALID_KEY if type(error) is Unauthorized else error.code
    fields = {"message": error.message, "type": error.kind, "param": error.param, "code": code}
    return msgspec.json.encode({"error": fields if error.job_id is None else fields | {"job_id": error.job_id}})


class _UpstreamError(msgspec.Struct):
    message: str
    code: str | int | None = None


class _UpstreamBody(msgspec.Struct):
    error: _UpstreamError


def _upstream_body(body: bytes) -> bytes | None:
    """Return the model's own error body with a code that is a text, or None if it does not have OpenAI's format."""
    try:
        error = msgspec.json.decode(body, type=_UpstreamBody).error
    except (ValueError, RecursionError):
        return None
    code = error.code
    if not error.message or error.message.lstrip().startswith(("{", "[", "<")):  # no text for people
        return None
    if not isinstance(code, int):
        return body
    payload: dict[str, Any] = msgspec.json.decode(body)
    payload["error"]["code"] = str(code)
    return msgspec.json.encode(payload)
