"""Anthropic's Messages API: the form, the text and the usage of an answer, and the events of its stream.

Source: Anthropic's API reference, "Messages" and "Streaming messages".
"""

from collections.abc import Iterable, Iterator
from io import StringIO
from typing import Literal, cast

import msgspec

from signoff.core import sse
from signoff.core.decode import JsonObject, as_object
from signoff.core.tokens import Usage

# An event that keeps a connection open. Clients of this API expect it at any place of a stream.
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
# Types of events that keep a connection open, in the streams of many servers.
KEEPALIVES = frozenset({"ping", "keepalive", "heartbeat"})
_EVENT_TYPES = frozenset(
    ["message_start", "message_delta", "message_stop"]
    + [f"content_block_{step}" for step in ("start", "delta", "stop")]
)

# Types of errors (Anthropic's API reference, "Errors").
_ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class _Message(msgspec.Struct):
    type: Literal["message"]
    content: list[JsonObject]


class _TokenCount(msgspec.Struct):
    input_tokens: int


def message_error_type(status: int) -> str:
    """Return the type of an error of this status."""
    return _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def is_message(body: bytes) -> bool:
    """Return True if `body` is an answer of this API."""
    try:
        msgspec.json.decode(body, type=_Message)
    except (ValueError, RecursionError):
        return False
    return True


def is_token_count(body: bytes) -> bool:
    """Return True if `body` is an answer of COUNT_TOKENS."""
    try:
        msgspec.json.decode(body, type=_TokenCount)
    except (ValueError, RecursionError):
        return False
    return True


def message_text(body: bytes) -> str | None:
    """Return the text of a message; None if `body` is no message, or has no text."""
    try:
        blocks = msgspec.json.decode(body, type=_Message).content
    except (ValueError, RecursionError):
        return None
    texts = [str(block.get("text", "")) for block in blocks if block.get("type") == "text"]
    return "".join(texts) if texts else None


def with_message_text(body: bytes, text: str) -> bytes:
    """Return the message with `text` as its only content, and the stop reason `end_turn`."""
    whole: JsonObject = msgspec.json.decode(body)
    return msgspec.json.encode(whole | {"content": [_text(text)], "stop_reason": "end_turn", "stop_sequence": None})


def message_from_text(text: str, name: str, model: str) -> JsonObject:
    """Return a message with the text `text`; its id ends in `name`."""
    return message_of([_text(text)], name, model) | {"stop_reason": "end_turn"}


def message_of(content: list[JsonObject], name: str, model: str) -> JsonObject:
    """Return a message with these blocks, not ended yet and without usage; its id ends in `name`."""
    return {
        "id": f"msg_{name}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


def usage_of(usage: Usage) -> JsonObject:
    """Return `usage` in the form of a message, in which cached tokens do not count as input tokens."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def message_event(event: JsonObject) -> bytes:
    """Encode an event of the stream of a message, with its type both as the event's name and in its data."""
    return f"event: {event['type']}\n".encode() + sse.event(msgspec.json.encode(event))


def events_of(message: JsonObject) -> Iterator[JsonObject]:
    """Yield the events of a stream of the whole `message`."""
    usage: JsonObject = {"input_tokens": 0, "output_tokens": 0} | as_object(message.get("usage"))
    initial: JsonObject = {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage | {"output_tokens": 0},
    }
    yield {"type": "message_start", "message": message | initial}
    for index, block in enumerate(cast("list[JsonObject]", message["content"])):
        empty, deltas = _split_block(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    ending = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    yield {"type": "message_delta", "delta": ending, "usage": usage}
    yield {"type": "message_stop"}


def _split_block(block: JsonObject) -> tuple[JsonObject, list[JsonObject]]:
    """Return the block as it starts, and the deltas that complete it."""
    match block:
        case {"type": "text"}:
            quoted = cast("list[object]", block.get("citations") or [])
            citations: list[JsonObject] = [{"type": "citations_delta", "citation": each} for each in quoted]
            return _text(""), [{"type": "text_delta", "text": block.get("text", "")}, *citations]
        case {"type": "thinking"}:
            deltas = [
                {"type": "thinking_delta", "thinking": block.get("thinking", "")},
                {"type": "signature_delta", "signature": block.get("signature", "")},
            ]
            return block | {"thinking": "", "signature": ""}, deltas
        case {"type": "tool_use" | "server_tool_use" | "mcp_tool_use"}:
            arguments = msgspec.json.encode(block.get("input") or {}).decode()
            return block | {"input": {}}, [{"type": "input_json_delta", "partial_json": arguments}]
        case _:
            return block, []


def is_message_event(event: JsonObject) -> bool:
    """Return True if the payload of an event is one of the stream of a message, and has a part of it."""
    return event.get("type") in _EVENT_TYPES


def assemble(events: Iterable[JsonObject]) -> JsonObject:
    """Return the message that the events of its stream add up to. Raises ValueError for events of another kind."""
    message, blocks = JsonObject(), dict[int, JsonObject]()
    for event in events:
        match event:
            case {"type": "message_start", "message": start}:
                message = as_object(start)
            case {"type": "content_block_start", "index": int() as index, "content_block": block}:
                blocks[index] = as_object(block)
            case {"type": "content_block_delta", "index": int() as index, "delta": delta}:
                _extend_block(blocks.setdefault(index, {"type": "text"}), as_object(delta))
            case {"type": "message_delta"}:
                totals = {name: value for name, value in as_object(event.get("usage")).items() if value is not None}
                message |= as_object(event.get("delta")) | {"usage": as_object(message.get("usage")) | totals}
            case _:
                pass
    message["content"] = [_whole_block(blocks[index]) for index in sorted(blocks)]
    return message


# Members of a block that grow, by the member of the delta that has more of them.
_GROWING = {"text": "text", "thinking": "thinking", "partial_json": "partial_json", "signature": "signature"}


def _extend_block(block: JsonObject, delta: JsonObject) -> None:
    """Merge a delta into its block, in place. Growing texts are StringIOs, as appending to a str takes n² time."""
    for name, member in _GROWING.items():
        if isinstance(more := delta.get(name), str):
            if not isinstance(block.get(member), StringIO):
                initial = StringIO()
                initial.write(str(block.get(member) or ""))
                block[member] = initial
            block[member].write(more)
    if "citation" in delta:
        block["citations"] = [*(block.get("citations") or []), delta["citation"]]


def _whole_block(block: JsonObject) -> JsonObject:
    whole = {name: value.getvalue() if isinstance(value, StringIO) else value for name, value in block.items()}
    arguments = whole.pop("partial_json", "")
    return whole | {"input": tool_input(arguments)} if arguments else whole


def tool_input(arguments: str) -> JsonObject:
    """Return the arguments of a tool call as an object; text that is no object, as when cut, is its `arguments`."""
    if not arguments.strip():
        return {}
    try:
        return msgspec.json.decode(arguments, type=JsonObject)
    except (ValueError, RecursionError):
        return {"arguments": arguments}


def _text(text: str) -> JsonObject:
    return {"type": "text", "text": text}
