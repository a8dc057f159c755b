"""Translation between Anthropic's Messages API and chat completions, for models that have only the latter.

Sources: the API references of Anthropic ("Messages") and of OpenAI ("Chat").
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from signoff.core.decode import JsonObject, as_object, form_fault
from signoff.core.dialects.chat_answer import ChatEnding, parse_chat_answer
from signoff.core.dialects.chat_stream import ChatPiece, ChatStreamReader
from signoff.core.dialects.messages import message_event, message_of, tool_input, usage_of
from signoff.core.dialects.openai_models import maximum_member
from signoff.core.tokens import Usage
from signoff.errors import BadRequest

MAX_USER_LENGTH = 64
STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Types of blocks of the assistant that are no texts of a chat: calls of tools, and thoughts.
_NO_TEXT = {"tool_use", "thinking", "redacted_thinking"}
# Members that ask for what no chat completion has; without them, the answer would be another one.
_UNSUPPORTED = ("mcp_servers", "container")


class _Request(msgspec.Struct):
    """The members of a request that a chat has too; the others (`thinking`, `top_k`, `metadata`…) are dropped."""

    messages: list[JsonObject]
    max_tokens: Any = None
    model: Any = None
    system: str | list[JsonObject] | None = None
    stop_sequences: list[str] | None = None
    temperature: Any = None
    top_p: Any = None
    tools: list[JsonObject] | None = None
    tool_choice: JsonObject | None = None
    metadata: JsonObject | None = None
    output_config: JsonObject | None = None
    output_format: JsonObject | None = None
    stream: bool | None = None


def to_chat(body: bytes, upstream_model: str) -> bytes:
    """Return the body of the chat that asks for the same; `upstream_model` is the name of the model at its upstream.

    Raises BadRequest for a body that is no request of this API, or asks for what a chat does not have.
    """
    members = _decode(body)
    try:
        request = msgspec.convert(members, _Request)
    except msgspec.ValidationError as error:
        raise form_fault(error, "The body is not a valid request for a message") from None
    for name in _UNSUPPORTED:
        if members.get(name):
            raise BadRequest(f"The model has no Messages API, so `{name}` is not supported; remove it.")
    chat: JsonObject = {"model": request.model, "messages": [*_system(request), *_messages(request)]}
    chat |= _named_alike(request, upstream_model) | _tools(request) | _format(request)
    if request.stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode({name: value for name, value in chat.items() if value is not None})


def _decode(body: bytes) -> JsonObject:
    try:
        return msgspec.json.decode(body, type=JsonObject)
    except msgspec.ValidationError:
        raise BadRequest("The body must be a JSON object.") from None


def _named_alike(request: _Request, upstream_model: str) -> JsonObject:
    """Return the members that a chat has under another name, or the same."""
    user = (request.metadata or {}).get("user_id")
    is_short = isinstance(user, str) and len(user) <= MAX_USER_LENGTH
    return {
        maximum_member(upstream_model): request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": request.stop_sequences or None,
        "user": user if is_short else None,
    }


def _system(request: _Request) -> list[JsonObject]:
    texts = [_text(block, "system") for block in _blocks(request.system or [])]
    return [{"role": "system", "content": "\n".join(texts)}] if any(texts) else []


def _messages(request: _Request) -> Iterator[JsonObject]:
    """Yield the messages of a chat, in which all results of tools come right after the message that called the tools.

    What else is in the messages of the user that follow a call comes after them.
    """
    pending = list[JsonObject]()
    for message in request.messages:
        blocks = _blocks(message.get("content"))
        if (role := message.get("role")) == "user":
            results, rest = _user_messages(blocks)
            yield from results
            pending += rest
            continue
        yield from pending
        pending.clear()
        match role:
            case "assistant":
                yield _assistant_message(blocks)
            case "system":
                yield {"role": "system", "content": "".join(_text(block, "messages") for block in blocks)}
            case _:
                raise BadRequest(f"The `role` of a message must be `user`, `assistant` or `system` (got {role!r}).")
    yield from pending


def _blocks(content: object) -> list[JsonObject]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    try:
        return msgspec.convert(content, list[JsonObject])
    except msgspec.ValidationError:
        raise BadRequest("The `content` of a message must be a text or a list of blocks.") from None


def _text(block: JsonObject, parameter: str) -> str:
    """Return the text of a block where a chat can have only texts. Raises BadRequest for a block of another type."""
    match block:
        case {"type": "text", "text": str() as text}:
            return text
        case _:
            raise _unsupported(block, parameter)


def _unsupported(block: JsonObject, parameter: str) -> BadRequest:
    return BadRequest(
        f"The model has no Messages API, so a block {block.get('type')!r} is not supported here in `{parameter}`; "
        "remove it."
    )


def _assistant_message(blocks: list[JsonObject]) -> JsonObject:
    """Return the message with its calls of tools; thoughts are dropped, as no chat takes them."""
    calls = [
        {
            "id": block.get("id"),
            "type": "function",
            "function": {
                "name": block.get("name"),
                "arguments": msgspec.json.encode(block.get("input") or {}).decode(),
            },
        }
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    text = "".join(_text(block, "messages") for block in blocks if block.get("type") not in _NO_TEXT)
    message: JsonObject = {"role": "assistant", "content": text if text or not calls else None}
    return message | {"tool_calls": calls} if calls else message


def _user_messages(blocks: list[JsonObject]) -> tuple[list[JsonObject], list[JsonObject]]:
    """Return the results of tools, each a message of its own, and the rest as one message or none."""
    results, rest = list[JsonObject](), list[JsonObject]()
    for block in blocks:
        if block.get("type") != "tool_result":
            rest += _parts(block)
            continue
        inner = _blocks(block.get("content") or "")
        parts = [part for each in inner for part in _parts(each)]
        separator = "" if all(each.get("type") == "text" for each in inner) else "\n"
        text = separator.join(part["text"] for part in parts if part["type"] == "text")
        prefix = "Error: " if block.get("is_error") else ""
        results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": prefix + text})
        rest += [part for part in parts if part["type"] != "text"]  # a result of a chat can be a text only
    is_text = len(rest) == 1 and rest[0]["type"] == "text"
    return results, [{"role": "user", "content": rest[0]["text"] if is_text else rest}] if rest else []


def _parts(block: JsonObject) -> list[JsonObject]:
    """Return a block as parts of a chat message. Raises BadRequest for a type that a chat does not have."""
    match block:
        case {"type": "image", "source": source}:
            return [_image_part(as_object(source))]
        case {"type": "document", "source": source}:
            return _document_parts(block, as_object(source))
        case {"type": "search_result"}:
            texts = [_text(each, "messages") for each in _blocks(block.get("content"))]
            return [_text_part(f"{block.get('title', '')}\n{block.get('source', '')}\n" + "".join(texts))]
        case _:
            return [_text_part(_text(block, "messages"))]


def _text_part(text: str) -> JsonObject:
    return {"type": "text", "text": text}


def _image_part(source: JsonObject) -> JsonObject:
    match source:
        case {"type": "base64", "media_type": str() as media_type, "data": str() as data}:
            return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}
        case {"type": "url", "url": str() as url}:
            return {"type": "image_url", "image_url": {"url": url}}
        case _:
            raise _unsupported_source("image", source)


def _document_parts(block: JsonObject, source: JsonObject) -> list[JsonObject]:
    """Return the parts of a document, after its title and its context, which the model reads, too."""
    title, context = block.get("title"), block.get("context")
    head = [str(text) for text in (title, context) if text]
    match source:
        case {"type": "base64", "media_type": str() as media_type, "data": str() as data}:
            file = {"filename": str(title or "document.pdf"), "file_data": f"data:{media_type};base64,{data}"}
            return [*([_text_part(str(context))] if context else []), {"type": "file", "file": file}]
        case {"type": "text", "data": str() as text}:
            return [_text_part("\n".join([*head, text]))]
        case {"type": "content", "content": content}:
            parts = [
                _image_part(as_object(each.get("source")))
                if each.get("type") == "image"
                else _text_part(_text(each, "messages"))
                for each in _blocks(content)
            ]
            return [*([_text_part("\n".join(head) + "\n")] if head else []), *parts]
        case _:
            raise _unsupported_source("document", source)


def _unsupported_source(kind: str, source: JsonObject) -> BadRequest:
    return BadRequest(
        f"The model has no Messages API, so the `source` {source.get('type')!r} of a block {kind!r} in `messages` is "
        "not supported; send its data."
    )


def _tools(request: _Request) -> JsonObject:
    tools = [_tool(tool) for tool in request.tools or []]
    if not tools:
        return {}
    choice = request.tool_choice or {}
    match choice:
        case {"type": "tool", "name": name}:
            chosen: Any = {"type": "function", "function": {"name": name}}
        case _:
            chosen = _TOOL_CHOICES.get(str(choice.get("type")))
    return {
        "tools": tools,
        "tool_choice": chosen,
        "parallel_tool_calls": False if choice.get("disable_parallel_tool_use") else None,
    }


def _tool(tool: JsonObject) -> JsonObject:
    if "input_schema" not in tool:
        raise BadRequest(
            f"The tool {tool.get('name')!r} has no `input_schema`; add it. Only Anthropic's models know tools by name."
        )
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool["input_schema"]}
    if (strict := tool.get("strict")) is not None:
        function["strict"] = strict
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _format(request: _Request) -> JsonObject:
    """Return the schema that the answer must have."""
    wanted = (request.output_config or {}).get("format") or request.output_format
    match wanted:
        case {"type": "json_schema", "schema": schema}:
            json_schema = {"name": "answer", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": json_schema}}
        case _:
            return {}


def from_chat(body: bytes, name: str, model: str) -> bytes:
    """Convert a chat completion to a message, whose id ends in `name`. Raises ModelGarbled if `body` is not one."""
    chat = parse_chat_answer(body)
    text = chat.text or chat.refusal
    content: list[JsonObject] = [{"type": "text", "text": text}] if text or not chat.calls else []
    for number, call in enumerate(chat.calls):
        block = _tool_use(call.call_id or _call_id(name, number), call.name)
        content.append(block | {"input": tool_input(call.arguments)})
    ending = _ending(chat.end, has_calls=bool(chat.calls))
    return msgspec.json.encode(
        message_of(content, name, model) | ending | {"usage": usage_of(chat.end.usage or Usage())}
    )


def _tool_use(call_id: object, tool_name: object) -> JsonObject:
    return {"type": "tool_use", "id": call_id, "name": tool_name, "input": {}}


def _call_id(name: str, number: int) -> str:
    return f"toolu_{name}_{number}"


def _ending(end: ChatEnding, *, has_calls: bool) -> JsonObject:
    reason = STOP_REASONS.get(end.finish_reason or "stop", "end_turn")
    if has_calls and reason == "end_turn":
        reason = "tool_use"
    if end.stop_sequence is not None and reason == "end_turn":
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": end.stop_sequence if reason == "stop_sequence" else None}


class MessageTranslator:
    """Translator of one chat stream to the events of a message, whose id ends in `name`."""

    def __init__(self, name: str, model: str) -> None:
        self._name = name
        self._model = model
        self._chat = ChatStreamReader()
        self._open: JsonObject | None = None
        self._index = -1
        self._block_of_call: dict[int, int] = {}
        self._has_begun = False

    def feed(self, event: bytes) -> list[bytes]:
        """Return the events that one event of the chat becomes. Raises ModelGarbled if it is not one of a chat."""
        return self._translate(self._chat.feed(event))

    def finish(self) -> list[bytes]:
        """Return the events that end the message."""
        last = self._translate(self._chat.finish())
        ending = _ending(self._chat.end, has_calls=self._chat.has_calls)
        events = [*self._begin(), *self._close()]
        events.append({"type": "message_delta", "delta": ending, "usage": usage_of(self._chat.end.usage or Usage())})
        return [*last, *(message_event(each) for each in [*events, {"type": "message_stop"}])]

    def _translate(self, pieces: list[ChatPiece]) -> list[bytes]:
        return [message_event(each) for piece in pieces for each in [*self._begin(), *self._events(piece)]]

    def _begin(self) -> Iterator[JsonObject]:
        if not self._has_begun:
            self._has_begun = True
            yield {"type": "message_start", "message": message_of([], self._name, self._model)}

    def _events(self, piece: ChatPiece) -> Iterator[JsonObject]:
        match piece.kind:
            case "text" | "refusal":
                if self._open is None or self._open["type"] != "text":
                    yield from self._open_block({"type": "text", "text": ""})
                yield self._delta(self._index, {"type": "text_delta", "text": piece.text})
            case "call":
                block = _tool_use(piece.call_id or _call_id(self._name, piece.number), piece.text)
                yield from self._open_block(block)
                self._block_of_call[piece.number] = self._index
            case "arguments":
                delta = {"type": "input_json_delta", "partial_json": piece.text}
                yield self._delta(self._block_of_call[piece.number], delta)

    def _open_block(self, block: JsonObject) -> Iterator[JsonObject]:
        yield from self._close()
        self._open, self._index = block, self._index + 1
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _close(self) -> Iterator[JsonObject]:
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, index: int, delta: JsonObject) -> JsonObject:
        return {"type": "content_block_delta", "index": index, "delta": delta}
