"""Conversion of an answer to the form of an API path, whole or as a stream.

It is needed because a reviewer may replace an answer by a bare text or any JSON.
"""

from collections.abc import Iterator

import msgspec

from signoff.core import api_paths, sse
from signoff.core.binary import decode_binary
from signoff.core.decode import JsonObject
from signoff.core.dialects import messages, response
from signoff.core.dialects.answer import as_completion, completion_events, is_completion, text_or_json
from signoff.core.dialects.responses_to_chat import ID_MARK
from signoff.core.fingerprint import fingerprint


def convert_answer(path: str, body: bytes, model: str, *, created: int = 0, seed: str = "") -> bytes:
    """Return `body` if it has the form of an answer of `path`, else such an answer with `body` as its text.

    Args:
        path: Endpoint of the request.
        body: JSON.
        model: Name of the model in an answer that is made here.
        created: Time of such an answer, in seconds since 1970.
        seed: Source of its id, besides the model and the body.
    """
    if has_form(path, body):
        return body
    match path:
        case api_paths.CHAT:
            return as_completion(body, model, created=created, seed=seed)
        case api_paths.COMPLETIONS | api_paths.EDITS:
            return _text_answer(path, text_or_json(body), model, created, seed)
        case api_paths.MESSAGES:
            return msgspec.json.encode(messages.message_from_text(text_or_json(body), _id_of(model, body, seed), model))
        case _:
            name = ID_MARK + _id_of(model, body, seed)  # no upstream has stored it
            return msgspec.json.encode(response.response_from_text(text_or_json(body), name, model, created=created))


def has_form(path: str, body: bytes) -> bool:
    """Return True if `body` has the form of an answer of `path`, as any JSON has where the form is not known."""
    match path:
        case api_paths.CHAT:
            return is_completion(body)
        case api_paths.COMPLETIONS | api_paths.EDITS:
            return _is_text(body)
        case api_paths.RESPONSES:
            return response.is_response(body)
        case api_paths.MESSAGES:
            return messages.is_message(body)
        case _:
            return True


def stream_events(path: str, body: bytes, *, with_usage: bool) -> Iterator[bytes]:
    """Yield an answer as a stream in the form of `path`; for a path without streams, one event and `[DONE]`."""
    match path:
        case api_paths.CHAT:
            yield from completion_events(body, with_usage=with_usage)
        case api_paths.COMPLETIONS:
            yield from _text_events(msgspec.json.decode(convert_answer(path, body, "")), with_usage=with_usage)
        case api_paths.RESPONSES:
            for event in response.events_of(msgspec.json.decode(convert_answer(path, body, ""))):
                yield response.response_event(event)
        case api_paths.MESSAGES:
            for event in messages.events_of(msgspec.json.decode(convert_answer(path, body, ""))):
                yield messages.message_event(event)
        case _ if (binary := decode_binary(body)) is not None and binary.content_type == sse.CONTENT_TYPE:
            yield binary.content
        case _:
            yield sse.event(b"".join(body.splitlines()))
            yield sse.DONE


def keep_alive(path: str, text: bytes) -> bytes:
    """Return an event that keeps a stream of `path` open and that clients ignore: a comment, or Anthropic's `ping`."""
    return messages.PING if path == api_paths.MESSAGES else sse.comment(text)


class _Text(msgspec.Struct):
    text: str


class _Texts(msgspec.Struct):
    choices: list[_Text]


def _is_text(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=_Texts)
    except (ValueError, RecursionError):
        return False
    return True


def _text_answer(path: str, text: str, model: str, created: int, seed: str) -> bytes:
    choice: JsonObject = {"text": text, "index": 0}
    if path == api_paths.EDITS:
        return msgspec.json.encode({"object": "edit", "created": created, "choices": [choice]})
    name = f"cmpl-{_id_of(model, text.encode(), seed)}"
    head = {"id": name, "object": "text_completion", "created": created, "model": model}
    return msgspec.json.encode(head | {"choices": [choice | {"logprobs": None, "finish_reason": "stop"}]})


def _id_of(model: str, body: bytes, seed: str) -> str:
    return fingerprint(model.encode(), body, seed.encode())[:16]


def _text_events(whole: JsonObject, *, with_usage: bool) -> Iterator[bytes]:
    """Yield the text and the end of each choice, the usage if asked for, and `[DONE]`."""
    head = {key: value for key, value in whole.items() if key not in {"choices", "usage"}}
    for choice in whole["choices"]:
        for part in (choice | {"finish_reason": None}, _end_of(choice)):
            yield sse.event(msgspec.json.encode(head | {"choices": [part]}))
    if with_usage and whole.get("usage"):
        usage: JsonObject = head | {"choices": [], "usage": whole["usage"]}
        yield sse.event(msgspec.json.encode(usage))
    yield sse.DONE


def _end_of(choice: JsonObject) -> JsonObject:
    reason = choice.get("finish_reason") or "stop"
    return {"index": choice.get("index", 0), "text": "", "logprobs": None, "finish_reason": reason}
