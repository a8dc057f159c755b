"""Answers of `/v1/responses`: their text, and the events of their streams.

Source: OpenAI's API reference, "Responses" and "Streaming events".
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import cast

import msgspec

from signoff.core import sse
from signoff.core.decode import JsonObject

# A function that splits a text into the deltas of a stream.
Cut = Callable[[str], Iterable[str]]


class _Response(msgspec.Struct):
    output: list[JsonObject]


def response_text(body: bytes) -> str | None:
    """Return the text of a response; None if `body` is not a response, or has no text."""
    try:
        items = msgspec.json.decode(body, type=_Response).output
    except (ValueError, RecursionError):
        return None
    parts = [part for item in items if item.get("type") == "message" for part in _parts(item)]
    texts = [str(part["text"]) for part in parts if part.get("type") == "output_text" and "text" in part]
    return "".join(texts) if texts else None


def is_response(body: bytes) -> bool:
    """Return True if `body` has the member `output` of a response."""
    try:
        msgspec.json.decode(body, type=_Response)
    except (ValueError, RecursionError):
        return False
    return True


def _parts(item: JsonObject) -> list[JsonObject]:
    try:
        return msgspec.convert(item.get("content") or [], list[JsonObject])
    except msgspec.ValidationError:
        return []


def with_response_text(body: bytes, text: str) -> bytes:
    """Return the response, completed, with one message that says `text`; calls of tools and reasoning go."""
    whole: JsonObject = msgspec.json.decode(body)
    messages = [item for item in cast("list[JsonObject]", whole["output"]) if item.get("type") == "message"]
    name = str(messages[0].get("id", "msg_edited")) if messages else "msg_edited"
    ending: JsonObject = {"status": "completed", "incomplete_details": None, "output_text": text}
    changes = {key: value for key, value in ending.items() if key in whole}
    return msgspec.json.encode(whole | changes | {"output": [_message(text, name)]})


def response_from_text(text: str, name: str, model: str, *, created: int = 0) -> JsonObject:
    """Return a response with the text `text`, made at `created` (seconds since 1970); its ids end in `name`."""
    return response_of([_message(text, f"msg_{name}")], name, model, created)


def response_of(output: list[JsonObject], name: str, model: str, created_at: int = 0) -> JsonObject:
    """Return a completed response with these items; its id ends in `name`. `created_at` is in seconds since 1970."""
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": created_at,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
    }


def usage_of(
    input_tokens: int, output_tokens: int, *, total: int = 0, cached: int = 0, reasoning: int = 0
) -> JsonObject:
    """Return the usage of a response, in tokens; a `total` of 0 stands for the sum of input and output."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": total or input_tokens + output_tokens,
    }


def events_of(whole: JsonObject, cut: Cut = lambda text: [text]) -> Iterator[JsonObject]:
    """Yield the events of a stream of the response `whole`; `cut` splits its texts into the deltas."""
    number = count()
    for kind, members in _events(whole, cut):
        yield {"type": kind, **members, "sequence_number": next(number)}


def response_event(event: JsonObject) -> bytes:
    """Encode an event of the stream of a response, with its type both as the event's name and in its data."""
    return f"event: {event['type']}\n".encode() + sse.event(msgspec.json.encode(event))


_Event = tuple[str, JsonObject]


def _events(whole: JsonObject, cut: Cut) -> Iterator[_Event]:
    initial: JsonObject = whole | {"status": "in_progress", "output": [], "usage": None}
    yield "response.created", {"response": initial}
    yield "response.in_progress", {"response": initial}
    for index, item in enumerate(cast("list[JsonObject]", whole["output"])):
        yield from _item_events(index, item, cut)
    status = whole.get("status")
    end = status if status in {"incomplete", "failed"} else "completed"
    yield f"response.{end}", {"response": whole}


def _item_events(index: int, item: JsonObject, cut: Cut) -> Iterator[_Event]:
    position = {"item_id": item.get("id", ""), "output_index": index}
    match item.get("type"):
        case "message":
            yield "response.output_item.added", _added_item(index, item, content=[])
            for number, part in enumerate(_parts(item)):
                yield from _part_events(position | {"content_index": number}, part, cut)
        case "function_call":
            arguments = str(item.get("arguments") or "")
            yield "response.output_item.added", _added_item(index, item, arguments="")
            for piece in cut(arguments):
                yield "response.function_call_arguments.delta", position | {"delta": piece}
            call = position | {"arguments": arguments, "name": item.get("name", "")}
            yield "response.function_call_arguments.done", call
        case _:
            yield "response.output_item.added", _added_item(index, item)
    yield "response.output_item.done", {"output_index": index, "item": item}


def _added_item(index: int, item: JsonObject, **empty: object) -> JsonObject:
    status = {"status": "in_progress"} if "status" in item else {}
    return {"output_index": index, "item": item | empty | status}


def _part_events(position: JsonObject, part: JsonObject, cut: Cut) -> Iterator[_Event]:
    kind, member = ("refusal", "refusal") if part.get("type") == "refusal" else ("output_text", "text")
    text = str(part.get(member) or "")
    more: JsonObject = {"logprobs": []} if kind == "output_text" else {}
    yield "response.content_part.added", position | {"part": part | {member: ""}}
    for piece in cut(text):
        yield f"response.{kind}.delta", position | {"delta": piece} | more
    yield f"response.{kind}.done", position | {member: text} | more
    yield "response.content_part.done", position | {"part": part}


def _message(text: str, name: str) -> JsonObject:
    return {"id": name, "type": "message", "role": "assistant", "status": "completed", "content": [_text(text)]}


def _text(text: str) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": []}
