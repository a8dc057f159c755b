"""State of a stream, from its events: whether the answer has begun, and whether it is whole.

Events before the first content are no answer yet: comments, empty chunks, the role, `ping`, `message_start`,
`response.created`. If a stream fails before that, another model can be asked.
"""

import re
from collections.abc import Iterable
from typing import Any, cast

import msgspec

from signoff.core import sse
from signoff.core.api_paths import STREAMED
from signoff.core.decode import JsonObject
from signoff.core.dialects.assembly import decode_payloads
from signoff.core.dialects.messages import KEEPALIVES, is_message_event
from signoff.core.dialects.response_stream import FINAL_EVENTS, ResponseStream, is_response_event
from signoff.core.dialects.surrogates import decode_with_surrogates, has_surrogates, replace_lone_surrogates

# Escapes in JSON that may stand for a letter, a dot or an underscore of a type.
_ESCAPED_LETTER = re.compile(rb"\\u00[2567]")
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
# Types of the events that end a response or a message, whose streams have no `[DONE]`.
FINAL_TYPES = FINAL_EVENTS | {"message_stop"}
# Types of the events that end an image, speech or a transcription, whose streams have no `[DONE]` either.
FINAL_MEDIA_TYPES = (
    "image_generation.completed",
    "image_edit.completed",
    "speech.audio.done",
    "transcript.text.done",
)
# Events of Anthropic's and OpenAI's streams that come before any content.
_SILENT = KEEPALIVES | {"message_start", "response.created", "response.queued", "response.in_progress"}
# Events that announce an item, and its member in them. They have content if the item is a call, or has a text already.
_ANNOUNCEMENTS = {
    "content_block_start": "content_block",
    "response.output_item.added": "item",
    "response.content_part.added": "part",
    "response.reasoning_summary_part.added": "part",
}
_TEXT_TYPES = {"text", "thinking", "message", "reasoning", "output_text", "refusal", "reasoning_text", "summary_text"}


class _Event(msgspec.Struct):
    type: Any = None


def payload_type(data: bytes) -> object:
    """Return the `type` of the data of an event; None without one. Raises ValueError if it is no JSON object.

    Raises RecursionError if it is nested too deeply.
    """
    try:
        return msgspec.json.decode(data, type=_Event).type
    except ValueError:
        if not has_surrogates(data):
            raise
        return msgspec.json.decode(replace_lone_surrogates(data), type=_Event).type


def event_type(event: bytes) -> str:
    """Return the type of an event: the one in its data, else its name; empty without either."""
    try:
        kind = payload_type(sse.data_of(event))
    except (ValueError, RecursionError):
        kind = None
    return kind if isinstance(kind, str) else sse.name_of(event).decode(errors="replace")


def is_of_type(event: bytes, kind: str) -> bool:
    """Return True if `event` has this type. One that does not have its letters is not decoded."""
    return (kind.encode() in event or has_escaped_letters(event)) and event_type(event) == kind


def has_escaped_letters(event: bytes) -> bool:
    """Return True if `event` may write letters of its type as escapes."""
    return b"\\" in event and _ESCAPED_LETTER.search(event) is not None


def has_content(event: bytes, path: str = "") -> bool:
    """Return True if `event` has content, or ends the stream.

    An event of an unknown format counts as content, unless `path` is one whose streams have a known format.
    """
    if not (data := sse.data_of(event)):
        return False
    try:
        payload = decode_with_surrogates(data)
    except (ValueError, RecursionError):
        return True
    return not isinstance(payload, dict) or _is_begun(cast("JsonObject", payload), is_known=path in STREAMED)


def _is_begun(payload: JsonObject, *, is_known: bool) -> bool:
    match payload:
        case {"choices": choices}:
            return isinstance(choices, list) and any(_has_begun(choice) for choice in cast("list[object]", choices))
        case {"type": str() as kind} if kind in _ANNOUNCEMENTS:
            return _says_something(payload.get(_ANNOUNCEMENTS[kind]))
        case {"type": str() as kind}:
            return kind not in _SILENT and (is_response_event(payload) or is_message_event(payload) or not is_known)
        case _:
            return not (is_known or is_without_answer(payload))


def is_without_answer(payload: object) -> bool:
    """Return True if the payload of an event has no piece of an answer, not even its role."""
    match payload:
        case {"choices": object() as choices}:
            return not choices
        case {"type": str() as kind}:
            return kind in KEEPALIVES
        case {"object": "chat.completion.chunk" | "text_completion"}:
            return True
        case _:
            return not payload


def _has_begun(choice: object) -> bool:
    """Return True if a choice has a text, a call, or its end."""
    if not isinstance(choice, dict):
        return True
    members = cast("JsonObject", choice)
    delta = members.get("delta")
    inner = cast("JsonObject", delta) if isinstance(delta, dict) else {}
    has_delta = any(value for name, value in inner.items() if name != "role")
    return has_delta or any(members.get(name) for name in ("text", "message", "finish_reason"))


def _says_something(item: object) -> bool:
    if not isinstance(item, dict):
        return True
    members = cast("JsonObject", item)
    has_text = any(members.get(name) for name in ("text", "thinking", "refusal", "content", "summary"))
    return has_text or members.get("type") not in _TEXT_TYPES


def missing_end(events: Iterable[bytes], *, has_mark: bool) -> bytes | None:
    """Return the event that ends the stream of `events`, which has come without its last event; None if it was cut.

    The answer is whole if every choice has its `finish_reason`, or the usage comes without a choice, as it does at the
    end alone; if every item of a response is done; or if a message has its `stop_reason`. `has_mark` is True if the
    stream has `[DONE]`, by which its server says that the answer is whole; the result is empty if nothing else is
    missing.
    """
    finished, response, has_stopped, ends_with_usage = dict[str, bool](), ResponseStream(), False, False
    for payload in decode_payloads(events):
        match payload:
            case {"choices": [*choices]}:
                ends_with_usage = not choices and bool(payload.get("usage"))
                for choice in choices:
                    members = cast("JsonObject", choice) if isinstance(choice, dict) else {}
                    index = str(members.get("index") or 0)
                    finished[index] = finished.get(index, False) or bool(members.get("finish_reason"))
            case {"type": "message_delta", "delta": {"stop_reason": str()}}:
                has_stopped = True
            case dict() if is_response_event(cast("JsonObject", payload)):
                response.add(cast("JsonObject", payload))
            case _:
                pass
    if response.has_begun and not response.is_final:
        return response.last_event() if has_mark or response.has_ended else None
    if has_stopped:
        return MESSAGE_STOP
    if has_mark:
        return b""
    return sse.DONE if finished and (ends_with_usage or all(finished.values())) else None
