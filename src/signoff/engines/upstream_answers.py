"""Check of answers with status 200: some are errors, and some are JSON that is no answer of the path.

Aggregators send these when their provider fails, and gateways when they have no answer at all.
"""

import re
from typing import cast

import msgspec

from signoff.core.api_paths import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EDITS,
    EMBEDDINGS,
    KNOWN,
    MESSAGES,
    MODERATIONS,
    RERANK,
    RESPONSES,
)
from signoff.core.decode import JsonObject, as_object
from signoff.core.dialects.surrogates import decode_with_surrogates, encode_with_surrogates
from signoff.engines.upstream_errors import answered_error, parse_error
from signoff.errors import ModelAnswered, ModelGarbled

# Members of an answer by path; an answer has at least one of them.
_ANSWER_MEMBERS = {
    CHAT: ("choices",),
    COMPLETIONS: ("choices",),
    EDITS: ("choices",),
    RESPONSES: ("output",),
    EMBEDDINGS: ("data",),
    MODERATIONS: ("results",),
    RERANK: ("results", "data"),
    MESSAGES: ("content",),
    COUNT_TOKENS: ("input_tokens",),
}
_USUAL_MEMBER = {path: f'"{names[0]}"'.encode() for path, names in _ANSWER_MEMBERS.items()}
# Without one of the members, an answer to one of these cannot be read by any client.
_STRICT = {CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS}
# Only a failed answer has one of these: within a text of a model, quotes are escaped.
_MARKS_OF_FAILURE = (b'"error"', b'"failed"', b'"cancelled"')
_FAILED_STATUSES = ("failed", "cancelled")
# An empty value, after the name of its member.
_EMPTY_VALUE = re.compile(rb"\s*:\s*(?:null|\[\s*\]|\{\s*\})")
# Member of a choice by path, and its value: an object with a member, and a text.
_IN_CHOICES = {
    CHAT: (b'"message"', re.compile(rb'\s*:\s*\{\s*"')),
    COMPLETIONS: (b'"text"', re.compile(rb'\s*:\s*"')),
}
# Members by which an object describes an error without `error`; the last is MiniMax's.
_DESCRIPTIONS = ("detail", "message", "msg", "errors", "error_code", "error_message", "error_msg", "base_resp")
# Members of which an event of a stream has one, unless it only describes an error.
_EVENT_MEMBERS = ("choices", "id", "object", "type", "usage", "delta", "content")
# Statuses of errors that name none (OpenAI's and Anthropic's API reference, "Errors").
_STATUSES = {
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "api_error": 500,
    "server_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def check_answer(path: str, body: bytes) -> None:
    """Check that `body`, which is JSON, is an answer of `path`.

    Raises:
        ModelAnswered: it is an error.
        ModelGarbled: it is no answer.
    """
    is_known = path in KNOWN
    if _is_usual(path, body) and all(body.find(mark) < 0 for mark in _MARKS_OF_FAILURE):
        return
    payload = decode_with_surrogates(body)
    if not is_known:
        # An object may have an error of its own, such as a batch that failed.
        error = None if _has_any(payload, ("id", "object")) else own_error(payload)
    else:
        error = find_error(payload) or _described_error(payload, path)
    if error is not None:
        raise as_model_answered(error)
    if is_known and (not payload or (path in _STRICT and not _is_answer(path, payload))):
        raise ModelGarbled(f"The model's answer is not an answer of the endpoint {path}.")


def _is_usual(path: str, body: bytes) -> bool:
    """Return True if `body` has what a usual answer of `path` has, as far as a search in its bytes can tell.

    That costs less than to decode it. Return True for a path whose answers are not known.
    """
    name = _USUAL_MEMBER.get(path)
    if name is None:
        return True
    at = body.find(name)
    if at < 0 or _EMPTY_VALUE.match(body, at + len(name)):
        return False
    if path not in _IN_CHOICES:
        return True
    inner, value = _IN_CHOICES[path]
    at = body.find(inner, at)
    return at >= 0 and value.match(body, at + len(inner)) is not None


def _is_answer(path: str, payload: object) -> bool:
    """Return True if `payload` has what an answer of `path` has: an output, or a choice that is not empty."""
    if path in {MESSAGES, COUNT_TOKENS}:
        return isinstance(_member(payload, _ANSWER_MEMBERS[path][0]), list | int)
    if _has_any(payload, ("output",)):
        return True
    choices = _member(payload, "choices")
    return isinstance(choices, list) and any(
        bool(as_object(_member(choice, "message"))) or _has_any(choice, ("text",))
        for choice in cast("list[object]", choices)
    )


def find_error(payload: object) -> object:
    """Return the error in an answer or an event of a model, both decoded; None if there is none.

    It can also be in a choice (OpenRouter), or in a response that failed.
    """
    if (error := own_error(payload)) is not None:
        return error
    for response in (payload, _member(payload, "response")):
        if (status := _member(response, "status")) in _FAILED_STATUSES:
            return _meaningful(_member(response, "error")) or {
                "message": f"The model's response has the status {status}."
            }
    choices = _member(payload, "choices")
    for choice in cast("list[object]", choices) if isinstance(choices, list) else []:
        if (error := _meaningful(_member(choice, "error"))) is not None:
            return error
        if _member(choice, "finish_reason") == "error":
            return {"message": "The model ended its answer with an error."}
    return None


def own_error(payload: object) -> object:
    """Return the error in `error`, or the object itself if it says that it is one (vLLM); None if there is none."""
    error = _meaningful(_member(payload, "error"))
    return payload if error is None and "error" in (_member(payload, "type"), _member(payload, "object")) else error


def as_model_answered(error: object) -> ModelAnswered:
    """Return the error that a model describes with `error`: an object, or a text."""
    try:
        body = msgspec.json.encode({"error": error})
    except UnicodeEncodeError:  # a half of a character, which JSON allows
        body = encode_with_surrogates({"error": error})
    names = [str(_member(error, name)).lower() for name in ("code", "type", "status")]
    status = parse_error(body).status or next((_STATUSES[name] for name in names if name in _STATUSES), None)
    return answered_error(status, body)


def described_event_error(payload: object) -> object:
    """Return the payload of an event if it only describes an error; None otherwise."""
    return _described_error(payload, "") if is_description(payload) else None


def is_description(payload: object) -> bool:
    """Return True if the payload of an event is an object without any member of an answer."""
    members = as_object(payload)
    return bool(members) and not _has_any(members, _EVENT_MEMBERS)


def _described_error(payload: object, path: str) -> object:
    """Return `payload` if it describes an error, and has no member of an answer of `path`; None otherwise."""
    if any(_member(payload, name) is not None for name in _ANSWER_MEMBERS.get(path, ())):
        return None
    return payload if any(_meaningful(_member(payload, name)) for name in _DESCRIPTIONS) else None


def _meaningful(error: object) -> object:
    """Return the value of `error`; None for one that says that there is no error: null, false, or empty."""
    values = list(cast("JsonObject", error).values()) if isinstance(error, dict) else [error]
    return cast("object", error) if any(values) else None


def _member(value: object, name: str) -> object:
    return cast("JsonObject", value).get(name) if isinstance(value, dict) else None


def _has_any(value: object, names: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and any(name in value for name in names)
