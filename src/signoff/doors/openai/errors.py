"""Errors as OpenAI tells them: `{"error": {"message", "type", "param", "code"}}`, with codes that are texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any, cast

import msgspec

from signoff.core import sse
from signoff.core.convert import response_event
from signoff.core.endpoints import RESPONSES
from signoff.core.limits import Gauge
from signoff.doors.http import JSON, Header, Send, error_headers, send_bytes
from signoff.errors import LimitReached, ModelAnswered, SignoffError


async def send_error(send: Send, error: SignoffError, headers: Iterable[Header] = ()) -> None:
    """An error in OpenAI's dialect; a model's own error passes as it came, but for a code that is a number."""
    told = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    if isinstance(error, ModelAnswered) and error.retry_after_seconds is not None:
        told = [(name, value) for name, value in told if name != b"retry-after"]
        told.append((b"retry-after", str(ceil(error.retry_after_seconds)).encode()))
    if isinstance(error, LimitReached):
        told.extend(gauge_headers(error.gauges))
        if error.retry_after_seconds is not None:
            told.append((b"retry-after-ms", str(ceil(error.retry_after_seconds * 1000)).encode()))
    await send_bytes(send, error.status, _body(error), JSON, [*told, *headers])


def gauge_headers(gauges: Mapping[str, Gauge]) -> list[Header]:
    """How many requests and tokens there may be in a minute, how many are left, and when all are free again."""
    told = list[Header]()
    for what, (most, left, reset_seconds) in gauges.items():
        told.append((f"x-ratelimit-limit-{what}".encode(), str(most).encode()))
        told.append((f"x-ratelimit-remaining-{what}".encode(), str(left).encode()))
        told.append((f"x-ratelimit-reset-{what}".encode(), _duration(reset_seconds).encode()))
    return told


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `8.64s`, `6m0s`."""
    thousandths = ceil(seconds * 1000)
    if thousandths < 1000:
        return f"{thousandths}ms"
    minutes, rest = divmod(thousandths, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"


def error_event(error: SignoffError, path: str) -> bytes:
    """The error as the last event of a stream; that of a response has a type of its own."""
    body = _body(error)
    if path != RESPONSES:
        return sse.event(b"".join(body.splitlines()))
    told: dict[str, Any] = msgspec.json.decode(body)
    error_told = cast("dict[str, Any]", told["error"])
    members = {name: error_told.get(name) for name in ("code", "message", "param")}
    return response_event({"type": "error"} | members | told).raw


def error_body(error: SignoffError) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`; the job's id beside them where there is one."""
    told = {"message": error.message, "type": error.kind, "param": None, "code": error.code}
    return {"error": told if error.job_id is None else told | {"job_id": error.job_id}}


def _body(error: SignoffError) -> bytes:
    own = _own(error.body) if isinstance(error, ModelAnswered) else None
    return msgspec.json.encode(error_body(error)) if own is None else own


class _Code(msgspec.Struct):
    code: str | int | None = None


class _Own(msgspec.Struct):
    error: _Code


def _own(body: bytes) -> bytes | None:
    """The model's own error, where it has the form that clients read."""
    try:
        code = msgspec.json.decode(body, type=_Own).error.code
    except (ValueError, RecursionError):
        return None
    if not isinstance(code, int):
        return body
    told: dict[str, Any] = msgspec.json.decode(body)
    told["error"]["code"] = str(code)
    return msgspec.json.encode(told)
