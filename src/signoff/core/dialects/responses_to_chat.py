"""Translation between OpenAI's Responses API and chat completions, for models that have only the latter.

Source: OpenAI's API reference, "Responses", "Streaming events" and "Chat".
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import msgspec

from signoff.core.decode import JsonObject, form_fault
from signoff.core.dialects.chat_answer import ChatEnding, content_text, parse_chat_answer
from signoff.core.dialects.chat_stream import ChatPiece, ChatStreamReader
from signoff.core.dialects.openai_models import maximum_member
from signoff.core.dialects.response import response_event, response_of, usage_of
from signoff.errors import BadRequest

# Part of the ids of responses that no upstream has stored.
ID_MARK = "chat_"
# Members that need what only a server with stored responses has; without them, the answer would be another one.
_STORED = ("previous_response_id", "conversation", "prompt", "background")
_INCOMPLETE_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
_PASSED = ("temperature", "top_p", "parallel_tool_calls", "user")
# Members of a request that its response repeats.
_REPEATED = ("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "temperature", "text", "top_p")


class _Request(msgspec.Struct):
    """The members of a request that a chat has too; the others (`include`, `store`, `truncation`…) are dropped."""

    input: str | list[JsonObject]
    model: Any = None
    instructions: str | None = None
    max_output_tokens: Any = None
    tools: list[JsonObject] | None = None
    tool_choice: str | JsonObject | None = None
    text: JsonObject | None = None
    reasoning: JsonObject | None = None
    stream: bool | None = None


def to_chat(body: bytes, upstream_model: str) -> bytes:
    """Return the body of the chat that asks for the same; `upstream_model` is the name of the model at its upstream.

    Raises BadRequest for a body that is no request of this API, or asks for what a chat does not have.
    """
    check_self_contained(body)
    members = _decode(body)
    try:
        request = msgspec.convert(members, _Request)
    except msgspec.ValidationError as error:
        raise form_fault(error, "The body is not a valid request for a response") from None
    system = [{"role": "system", "content": request.instructions}] if request.instructions else []
    chat: JsonObject = {"model": request.model, "messages": [*system, *_messages(request.input)]}
    chat |= {name: members.get(name) for name in _PASSED} | _tools(request) | _format(request.text or {})
    chat |= {
        maximum_member(upstream_model): request.max_output_tokens,
        "reasoning_effort": (request.reasoning or {}).get("effort"),
    }
    if request.stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode({name: value for name, value in chat.items() if value is not None})


def check_self_contained(body: bytes) -> None:
    """Check that a request for a response refers to nothing that only a server with stored responses has.

    Raises BadRequest.
    """
    members = _decode(body)
    for name in _STORED:
        if members.get(name):
            raise BadRequest(
                f"The model stores no responses, so `{name}` is not supported; send the whole conversation in `input`."
            )


class _Reference(msgspec.Struct):
    previous_response_id: Any = None


def previous_response_id(body: bytes) -> str | None:
    """Return the id of the response that `body` continues; None if there is none."""
    if b"previous_response_id" not in body:
        return None
    try:
        response_id = msgspec.json.decode(body, type=_Reference).previous_response_id
    except (ValueError, RecursionError):
        return None
    return response_id if isinstance(response_id, str) else None


def is_translated(response_id: str) -> bool:
    """Return True if the response was translated from a chat, so that no upstream knows it."""
    return response_id.startswith(f"resp_{ID_MARK}")


def _decode(body: bytes) -> JsonObject:
    try:
        return msgspec.json.decode(body, type=JsonObject)
    except msgspec.ValidationError:
        raise BadRequest("The body must be a JSON object.") from None


def _messages(items: str | list[JsonObject]) -> list[JsonObject]:
    """Return the messages of a chat; calls of tools that follow each other are one message of the assistant.

    A result of a chat can be a text only, so its images and files are in a message of the user after all results.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages, pending = list[JsonObject](), list[JsonObject]()
    for item in items:
        kind = item.get("type") or "message"
        if pending and kind not in {"function_call_output", "reasoning"}:
            messages.append({"role": "user", "content": pending})
            pending = []
        match kind:
            case "message":
                messages.append(_message(item))
            case "function_call":
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                messages[-1].setdefault("tool_calls", []).append(_call(item))
            case "function_call_output":
                parts = [_part(part) for part in _parts(item.get("output"))]
                output = content_text(parts)
                messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
                pending += [part for part in parts if part["type"] != "text"]
            case "reasoning":
                continue  # thoughts, which no chat takes
            case kind:
                raise BadRequest(
                    f"The model has no Responses API, so an item {kind!r} of `input` is not supported; remove it."
                )
    return [*messages, {"role": "user", "content": pending}] if pending else messages


def _message(item: JsonObject) -> JsonObject:
    role = "system" if item.get("role") == "developer" else item.get("role")
    content = _parts(item.get("content"))
    parts = [_part(part) for part in content]
    if all(part["type"] == "text" for part in parts):
        return {"role": role, "content": content_text(parts)}
    if role in {"assistant", "system"}:
        kind = next(part.get("type") for part in content if _part(part)["type"] != "text")
        raise BadRequest(
            f"The model has no Responses API, so a part {kind!r} in a message of the {item['role']} in `input` is not "
            "supported; remove it, or send it in one of the user."
        )
    return {"role": role, "content": parts}


def _parts(content: object) -> list[JsonObject]:
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    try:
        return msgspec.convert(content, list[JsonObject])
    except msgspec.ValidationError:
        raise BadRequest("A content of `input` must be a text or a list of parts.") from None


def _part(part: JsonObject) -> JsonObject:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str() as text}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str() as text}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str() as url}:
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            return {"type": "image_url", "image_url": {"url": url} | detail}
        case {"type": "input_file", "file_data": str() as data}:
            return {"type": "file", "file": {"filename": part.get("filename", "document.pdf"), "file_data": data}}
        case {"type": "input_audio", "input_audio": dict()}:
            return {"type": "input_audio", "input_audio": part["input_audio"]}
        case _:
            raise BadRequest(
                f"The model has no Responses API, so a part {part.get('type')!r} of `input` is not supported; "
                "send a text, an `image_url` or `file_data`."
            )


def _call(item: JsonObject) -> JsonObject:
    function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _tools(request: _Request) -> JsonObject:
    tools = [_tool(tool) for tool in request.tools or []]
    match request.tool_choice:
        case {"type": "function", "name": name}:
            choice: Any = {"type": "function", "function": {"name": name}}
        case dict():
            raise BadRequest("The model has no Responses API, so `tool_choice` must be a text or name a function.")
        case choice:
            pass
    return {"tools": tools, "tool_choice": choice} if tools else {"parallel_tool_calls": None}


def _tool(tool: JsonObject) -> JsonObject:
    if tool.get("type") != "function":
        raise BadRequest(f"The model has no Responses API, so a tool {tool.get('type')!r} is not supported; remove it.")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _format(text: JsonObject) -> JsonObject:
    match text.get("format"):
        case {"type": "json_schema", **schema}:
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case {"type": "json_object"}:
            return {"response_format": {"type": "json_object"}}
        case _:
            return {}


def from_chat(body: bytes, name: str, model: str, request_body: bytes) -> bytes:
    """Convert a chat completion to a response, whose ids end in `name`. Raises ModelGarbled if `body` is not one."""
    chat, output = parse_chat_answer(body), list[JsonObject]()
    if chat.text:
        output.append(_message_item(name, 0) | _with_text(chat.text, "output_text"))
    if chat.refusal:
        output.append(_message_item(name, len(output)) | _with_text(chat.refusal, "refusal"))
    for number, call in enumerate(chat.calls):
        item = _call_item(name, number, call.call_id, call.name)
        output.append(item | {"arguments": call.arguments, "status": "completed"})
    whole = _response(name, model, request_body, chat.created)
    return msgspec.json.encode(whole | {"output": output} | _ending(chat.end))


def _response(name: str, model: str, request_body: bytes, created_at: int) -> JsonObject:
    """Return the response without output, with what it repeats of its request."""
    members = _decode(request_body)
    repeated = {each: members[each] for each in _REPEATED if members.get(each) is not None}
    tools: JsonObject = {"tools": members.get("tools") or [], "tool_choice": members.get("tool_choice") or "auto"}
    return response_of([], name, model, created_at) | {"store": False, "usage": None} | repeated | tools


def _ending(end: ChatEnding) -> JsonObject:
    ending: JsonObject = {"usage": _usage(end)}
    if reason := _INCOMPLETE_REASONS.get(end.finish_reason or "stop"):
        ending |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
    return ending


def _usage(end: ChatEnding) -> JsonObject | None:
    if (usage := end.usage) is None:
        return None
    return usage_of(
        usage.prompt_tokens,
        usage.completion_tokens,
        total=usage.total_tokens,
        cached=usage.cached_tokens,
        reasoning=end.reasoning_tokens,
    )


def _message_item(name: str, number: int) -> JsonObject:
    item_id = f"msg_{name}_{number}"
    return {"id": item_id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}


def _with_text(text: str, kind: str) -> JsonObject:
    return {"content": [_content(kind, text)], "status": "completed"}


def _content(kind: str, text: str) -> JsonObject:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(name: str, number: int, call_id: object, tool_name: object) -> JsonObject:
    return {
        "id": f"fc_{name}_{number}",
        "type": "function_call",
        "status": "in_progress",
        "call_id": call_id or f"call_{name}_{number}",
        "name": tool_name or "",
        "arguments": "",
    }


class _OpenItem(msgspec.Struct):
    """An item of the output that is not complete."""

    index: int
    item: JsonObject
    kind: str
    texts: list[str] = []


class ResponseTranslator:
    """Translator of one chat stream to the events of a response, whose ids end in `name`."""

    def __init__(self, name: str, model: str, request_body: bytes, created_at: int) -> None:
        self._name = name
        self._whole = _response(name, model, request_body, created_at)
        self._chat = ChatStreamReader()
        self._number = count()
        self._output = list[JsonObject]()
        self._message: _OpenItem | None = None
        self._calls: dict[int, _OpenItem] = {}
        self._has_begun = False

    def feed(self, event: bytes) -> list[bytes]:
        """Return the events that one event of the chat becomes. Raises ModelGarbled if it is not one of a chat."""
        return self._translate(self._chat.feed(event))

    def finish(self) -> list[bytes]:
        """Return the events that end the response."""
        events = [*self._translate(self._chat.finish()), *self._begin(), *self._end_message()]
        for call in self._calls.values():
            events += self._end_call(call)
        whole = self._whole | {"output": self._output} | _ending(self._chat.end)
        return [*events, self._event(f"response.{whole['status']}", response=whole)]

    def _translate(self, pieces: list[ChatPiece]) -> list[bytes]:
        return [event for piece in pieces for event in [*self._begin(), *self._events(piece)]]

    def _event(self, kind: str, **members: object) -> bytes:
        return response_event({"type": kind, **members, "sequence_number": next(self._number)})

    def _begin(self) -> Iterator[bytes]:
        if not self._has_begun:
            self._has_begun = True
            initial = self._whole | {"status": "in_progress"}
            yield self._event("response.created", response=initial)
            yield self._event("response.in_progress", response=initial)

    def _events(self, piece: ChatPiece) -> Iterator[bytes]:
        match piece.kind:
            case "call":
                yield from self._end_message()
                item = _call_item(self._name, piece.number, piece.call_id, piece.text)
                self._calls[piece.number] = opened = self._open(item, "arguments")
                yield self._event("response.output_item.added", output_index=opened.index, item=item)
            case "arguments":
                call = self._calls[piece.number]
                call.texts.append(piece.text)
                yield self._event("response.function_call_arguments.delta", **_position(call), delta=piece.text)
            case "text" | "refusal":
                yield from self._text_events("output_text" if piece.kind == "text" else "refusal", piece.text)

    def _open(self, item: JsonObject, kind: str) -> _OpenItem:
        self._output.append(item)
        return _OpenItem(len(self._output) - 1, item, kind)

    def _text_events(self, kind: str, text: str) -> Iterator[bytes]:
        """Yield more of the open message, after its beginning if none of this kind is open."""
        if self._message is None or self._message.kind != kind:
            yield from self._end_message()
            item = _message_item(self._name, len(self._output))
            self._message = opened = self._open(item, kind)
            yield self._event("response.output_item.added", output_index=opened.index, item=item)
            position = _position(opened) | {"content_index": 0}
            yield self._event("response.content_part.added", **position, part=_content(kind, ""))
        self._message.texts.append(text)
        more: JsonObject = {"logprobs": []} if kind == "output_text" else {}
        position = _position(self._message) | {"content_index": 0}
        yield self._event(f"response.{kind}.delta", **position, delta=text, **more)

    def _end_message(self) -> Iterator[bytes]:
        opened, self._message = self._message, None
        if opened is None:
            return
        kind, text = opened.kind, "".join(opened.texts)
        position, content = _position(opened) | {"content_index": 0}, _content(kind, text)
        more: JsonObject = {"logprobs": []} if kind == "output_text" else {}
        member = "text" if kind == "output_text" else "refusal"
        yield self._event(f"response.{kind}.done", **position, **{member: text}, **more)
        yield self._event("response.content_part.done", **position, part=content)
        yield self._end_item(opened, content=[content])

    def _end_call(self, call: _OpenItem) -> Iterator[bytes]:
        arguments = "".join(call.texts)
        done = {"arguments": arguments, "name": call.item["name"]}
        yield self._event("response.function_call_arguments.done", **_position(call), **done)
        yield self._end_item(call, arguments=arguments)

    def _end_item(self, opened: _OpenItem, **members: object) -> bytes:
        item = self._output[opened.index] = opened.item | members | {"status": "completed"}
        return self._event("response.output_item.done", output_index=opened.index, item=item)


def _position(opened: _OpenItem) -> JsonObject:
    return {"item_id": opened.item["id"], "output_index": opened.index}
