"""Errors of a model, read from bodies and events in any of the usual formats."""

import codecs
import html
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec

from signoff.core import sse
from signoff.core.retry import REQUEST_CODES, SPENT_CODES
from signoff.errors import ModelAccessDenied, ModelAnswered, ModelFailed

MAX_ERROR_BYTES = 64 * 2**10
MAX_MESSAGE_CHARS = 2000
# Errors of one list, and levels of nesting, that a message can have.
MAX_ERRORS = 5
MAX_DEPTH = 8
DENIED = {401, 403}
CLIENT_ERRORS = {400, 422}
# Texts of errors of the account that have the status and the code of a malformed request: Anthropic's and Google's.
ACCOUNT_PHRASES = ("credit balance is too low", "api key not valid", "api key expired")
# Members that hold a message, best first: OpenAI, Anthropic and Google nest it in `error`, FastAPI and problem details
# (RFC 9457) have `detail`, OAuth has `error_description`, Cloudflare `errors`. A text in `error` may be a mere code.
# Names are in lower case and without underscores.
_MESSAGES = (
    *(
        "message",
        "faultstring",
        "detail",
        "errordescription",
        "errors",
        "messages",
        "msg",
        "errormsg",
        "errmsg",
        "errormessage",
    ),
    *("statusmsg", "fault", "error", "err", "exception", "baseresp", "title", "reason", "description"),
)
_TITLE = re.compile(r"<(title|message|h1)\b[^>]*>(.*?)</\1\s*>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")


class UpstreamError(msgspec.Struct, frozen=True):
    """Content of an error body."""

    message: str
    """Message as one readable line; empty if the body has none."""
    status: int | None
    """Status of the error; None if the body has none."""
    codes: frozenset[str]
    """Codes and types of the error, in lower case."""


def answered_error(
    status: int | None,
    body: bytes,
    *,
    headers: Mapping[str, str] | None = None,
    retry_after_seconds: float | None = None,
) -> ModelAnswered:
    """Return the error for an error answer or an error event of a model.

    Args:
        status: Status of the answer; None for an event, whose body may have it.
        body: Body of the answer, or data of the event.
        headers: Headers of the answer, with names in lower case.
        retry_after_seconds: Time to wait that the model gave.
    """
    reported = parse_error(body[:MAX_ERROR_BYTES])
    status = status or reported.status or ModelFailed.status
    message = reported.message or f"The model answered with status {status}."
    kind = ModelAccessDenied if status in DENIED else ModelAnswered
    if status in DENIED:
        message = f"The model denied access to this server (status {status}): {message}"
    limits = {name: value for name, value in (headers or {}).items() if is_limit_header(name)}
    error = kind(status, message, body=body[:MAX_ERROR_BYTES], retry_after_seconds=retry_after_seconds, headers=limits)
    error.codes = reported.codes
    if reported.codes & SPENT_CODES or (status in CLIENT_ERRORS and _is_about_the_account(message)):
        error.is_account_fault, error.retryable = True, False
    if reported.codes & REQUEST_CODES:
        error.retryable = False
    should_retry = (headers or {}).get("x-should-retry", "").lower()
    if should_retry in {"true", "false"}:
        error.retryable = should_retry == "true"
    return error


def _is_about_the_account(message: str) -> bool:
    """Return True if a message says that the key is wrong or the credit is used up, where its code does not tell."""
    return any(phrase in message.lower() for phrase in ACCOUNT_PHRASES)


def is_limit_header(name: str) -> bool:
    """Return True if a response header, in lower case, tells about the rate limits of the upstream."""
    return name.startswith(("x-ratelimit-", "anthropic-ratelimit-"))


def parse_error(body: bytes) -> UpstreamError:
    """Return the message, the status and the codes of an error body: JSON of any shape, an event, a page or a text."""
    if body.startswith((b"data:", b"event:")):
        body = sse.data_of(_BLANK_LINE.split(body, maxsplit=1)[0])
    text = body.removeprefix(codecs.BOM_UTF8).decode(errors="replace")
    try:
        value: Any = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return UpstreamError(_shorten(_text_of(text)), None, frozenset())
    objects = list(_objects_in(value))
    numbers = (_status_of(each.get(name)) for each in objects for name in ("code", "status", "status_code"))
    texts = (each.get(name) for each in objects for name in ("code", "type", "status", "error"))
    return UpstreamError(
        _shorten(_message_in(value, MAX_DEPTH)),
        next((number for number in numbers if number is not None), None),
        frozenset(text.lower() for text in texts if isinstance(text, str)),
    )


def _message_in(value: Any, depth: int) -> str:
    """Return the message in a JSON value as one line."""
    if depth == 0 or value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        return _message_in_text(value, depth)
    if isinstance(value, list):
        messages = (_message_in(each, depth - 1) for each in cast("list[Any]", value)[:MAX_ERRORS])
        return "; ".join(message for message in messages if message)
    return _message_in_object(cast("dict[str, Any]", value), depth) if isinstance(value, dict) else str(value)


def _message_in_object(value: dict[str, Any], depth: int) -> str:
    """Return the best message in a JSON object; of one without any, its members."""
    members = {name.lower().replace("_", ""): member for name, member in value.items()}
    if isinstance(members.get("error"), dict | list) and (message := _message_in(members["error"], depth - 1)):
        return message
    message = next((text for name in _MESSAGES if (text := _message_in(members.get(name), depth - 1))), "")
    if message:
        message += _provider_message(members.get("metadata"), depth)
        return f"{place}: {message}" if (place := _place_in(members.get("loc"))) else message
    each_member = ((name, _message_in(member, depth - 1)) for name, member in members.items())
    return "; ".join([f"{name}: {text}" for name, text in each_member if text][:MAX_ERRORS])


def _provider_message(metadata: Any, depth: int) -> str:
    """Return what the provider of an aggregator said, to follow the aggregator's own message (OpenRouter)."""
    raw = cast("dict[str, Any]", metadata).get("raw") if isinstance(metadata, dict) else None
    return f": {message}" if (message := _message_in(raw, depth - 1)) else ""


def _message_in_text(text: str, depth: int) -> str:
    """Return `text` as one line; some gateways put the JSON of another error into the message of their own."""
    if text.lstrip().startswith(("{", "[")):
        try:
            return _message_in(msgspec.json.decode(text), depth - 1)
        except (ValueError, RecursionError):
            pass
    return _text_of(text)


def _place_in(loc: Any) -> str:
    """Return the place of a fault in FastAPI's form, such as `body.model`; an empty text if there is none."""
    return ".".join(map(str, cast("list[Any]", loc))) if isinstance(loc, list) else ""


def _text_of(text: str) -> str:
    """Return `text` as one line; of a page or of XML, the title or the message; nothing of bytes that are no text."""
    if "\ufffd" in text and _CONTROLS.search(text):
        return ""
    if text.lstrip("\ufeff \r\n\t").startswith("<"):
        title = _TITLE.search(text)
        text = html.unescape(_TAG.sub(" ", title[2])) if title else ""
    return " ".join(_CONTROLS.sub(" ", text).split())


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"


def _objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects that describe the error: the innermost first, the outer ones behind."""
    if isinstance(value, list):
        for each in cast("list[Any]", value)[:MAX_ERRORS]:
            yield from _objects_in(each)
    elif isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        for name in ("error", "errors", "message", "response"):
            if isinstance(members.get(name), dict | list):
                yield from _objects_in(members[name])
        yield members


def _status_of(value: Any) -> int | None:
    """Return an HTTP error status that is written as a number or as digits; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600 else None
