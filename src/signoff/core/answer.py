"""Answers of models: whole JSON bodies, and the server-sent events that add up to one."""

from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from typing import Any, cast

import msgspec

from signoff.core import response, sse
from signoff.core.binary import BinaryBody, encode_binary
from signoff.core.fingerprint import fingerprint
from signoff.core.response import JsonObject
from signoff.core.tokens import Usage, count_answer_tokens, estimate_usage, parse_usage
from signoff.errors import ModelGarbled


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer of a model."""

    body: bytes
    """JSON; an answer of another kind is a `BinaryBody` in JSON."""
    usage: Usage | None = None
    """Tokens of the answer; None where they are not known."""
    upstream_object_id: str | None = None
    """Id of the object that the request created at the upstream, such as a response or a file."""


def parse_answer(body: bytes) -> Answer:
    """Return the answer with this JSON body. Raises ModelGarbled if it is not JSON."""
    try:
        return Answer(body=body, usage=parse_usage(body))
    except (ValueError, RecursionError) as error:
        raise ModelGarbled(f"The model's answer is not JSON: {error}") from error


def collect(events: Iterable[bytes], request_body: bytes | None = None) -> Answer:
    """Return the completion that the server-sent `events` add up to.

    With `request_body`, the tokens of a stream that does not report them are estimated.

    Raises:
        ModelGarbled: an event is not one of a completion.
    """
    try:
        body, pieces = _assemble(events)
        return Answer(body=body, usage=parse_usage(body) or _estimate(request_body, pieces))
    except (ValueError, RecursionError) as error:
        raise ModelGarbled(f"The model's answer is not a stream of completion events: {error}") from error


def has_a_known_shape(events: Iterable[bytes]) -> bool:
    """Return True if `collect` can read `events`: those of a completion or a response."""
    return any(_has_known_shape(sse.data_of(event)) for event in events)


def as_binary(events: Sequence[bytes], request_body: bytes) -> Answer:
    """Return a stream of any other shape as an answer with a `BinaryBody`."""
    body = encode_binary(BinaryBody(sse.CONTENT_TYPE, b"".join(events)))
    return Answer(body=body, usage=usage_of_events(events, request_body))


def usage_of_body(body: bytes, request_body: bytes) -> Usage | None:
    """Return the tokens of a whole answer: as it reports them, else an estimate."""
    try:
        return parse_usage(body) or _estimate(request_body, count_answer_tokens(body))
    except (ValueError, RecursionError):
        return None


def usage_of_events(events: Iterable[bytes], request_body: bytes) -> Usage | None:
    """Return the tokens of a stream, even if it was cut: as last reported, else an estimate up to its end."""
    usage, pieces = None, 0
    for event in events:
        data = sse.data_of(event)
        try:
            usage = parse_usage(data) or usage
            pieces += _is_piece(msgspec.json.decode(data))
        except (ValueError, RecursionError):  # `[DONE]`, a comment, or the incomplete event at the cut
            continue
    return usage or _estimate(request_body, pieces)


def split(answer: bytes, *, with_usage: bool) -> Iterator[bytes]:
    """Yield a chat completion as a stream: role, content, tool calls, finish reason, usage if asked for, `[DONE]`.

    Any other JSON becomes the content of a completion.
    """
    completion: JsonObject = msgspec.json.decode(as_completion(answer, ""))
    head = {key: value for key, value in completion.items() if key not in {"choices", "usage"}}
    head["object"] = "chat.completion.chunk"
    for choice in completion["choices"]:
        for piece in _pieces(choice):
            yield _event(head | {"choices": [piece]})
    if with_usage and completion.get("usage"):
        yield _event(head | {"choices": [], "usage": completion["usage"]})
    yield sse.DONE


def answer_text(body: bytes | None) -> str | None:
    """Return the text of a completion or a response; None for an answer of another shape, or without text."""
    try:
        choice = msgspec.json.decode(body or b"null", type=_Choices).choices[0]
    except (ValueError, IndexError, RecursionError):
        return response.response_text(body or b"null")
    return choice.message.content if choice.message else choice.text


def text_or_json(body: bytes | None) -> str:
    """Return the text of an answer, else its JSON as it is written; a JSON string is its value."""
    text = answer_text(body)
    if text is not None:
        return text
    body = body or b"null"
    return msgspec.json.decode(body, type=str) if body.startswith(b'"') else body.decode()


def content_or_json(body: bytes) -> str | msgspec.Raw:
    """Return the text of an answer, else its JSON."""
    text = answer_text(body)
    return msgspec.Raw(body) if text is None else text


def with_text(body: bytes, text: str) -> bytes:
    """Return the answer with `text` as its text; a body that is neither a completion nor a response becomes `text`."""
    if response.is_response(body):
        return response.with_response_text(body, text)
    try:
        whole = msgspec.json.decode(body, type=dict[str, Any])
        choice = msgspec.convert(whole.get("choices"), list[dict[str, Any]])[0]
    except (ValueError, IndexError, RecursionError):
        return msgspec.json.encode(text)
    if isinstance(message := choice.get("message"), dict):
        choice["message"] = message | {"content": text}
    else:
        choice["text"] = text
    whole["choices"][0] = choice
    edited = msgspec.json.encode(whole)
    return edited if answer_text(edited) == text else msgspec.json.encode(text)


def as_completion(body: bytes, model: str) -> bytes:
    """Return `body` if it is a chat completion, else a completion of `model` with `body` as its content.

    A reviewer may have replaced an answer by a bare text or any JSON, and a chat door must answer with a completion.
    """
    try:
        msgspec.json.decode(body, type=_Completion)
    except msgspec.ValidationError:
        text = text_or_json(body)
    else:
        return body
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    name = f"chatcmpl-{fingerprint(model.encode(), body)[:16]}"
    head = {"id": name, "object": "chat.completion", "created": 0, "model": model}
    return msgspec.json.encode(head | {"choices": [choice]})


def _estimate(request_body: bytes | None, pieces: int) -> Usage | None:
    return None if request_body is None or not pieces else estimate_usage(request_body, pieces)


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None


class _Choices(msgspec.Struct):
    choices: list[_Choice]


def _assemble(events: Iterable[bytes]) -> tuple[bytes, int]:
    """Return the completion that the events add up to, and the number of events with content.

    Growing texts are StringIOs until the end, because appending to a str n times takes n² time.
    """
    whole, choices, piece, pieces = JsonObject(), dict[int, JsonObject](), JsonObject(), 0
    for event in events:
        data = sse.data_of(event)
        if not data or data == b"[DONE]":
            continue
        piece = msgspec.json.decode(data, type=JsonObject)
        for part in msgspec.convert(piece.pop("choices", None) or [], list[JsonObject]):
            pieces += _has_content(part)
            index = msgspec.convert(part.get("index") or 0, int)
            _extend_choice(choices.setdefault(index, {}), part)
        whole.update({key: value for key, value in piece.items() if value or key not in whole})
    if str(piece.get("type")).startswith("response."):  # the last event of such a stream has the whole response
        return msgspec.json.encode(piece.get("response")), 0
    kind = "text_completion" if any("text" in choice for choice in choices.values()) else "chat.completion"
    whole["object"] = str(whole.get("object") or kind).removesuffix(".chunk")
    whole["choices"] = [_as_whole_choice(choices[index]) for index in sorted(choices)]
    return msgspec.json.encode(whole, enc_hook=StringIO.getvalue), pieces


class _Piece(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    type: str = ""


def _has_known_shape(data: bytes) -> bool:
    try:
        piece = msgspec.json.decode(data, type=_Piece)
    except (ValueError, RecursionError):
        return False
    return piece.choices is not None or piece.type.startswith("response.")


def _is_piece(event: Any) -> bool:
    """Return True if an event has content: of a completion, or of a response."""
    match event:
        case {"choices": [*choices]}:
            return any(_has_content(cast("JsonObject", choice)) for choice in choices if isinstance(choice, dict))
        case {"type": str() as kind}:
            return kind.endswith(".delta")
        case _:
            return False


def _has_content(part: JsonObject) -> bool:
    """Return True if a choice of an event has more of a text or of a tool call, which is about one token."""
    delta = part.get("delta")
    if isinstance(delta, dict):
        return any(value for name, value in cast("JsonObject", delta).items() if name != "role")
    return bool(part.get("text"))


# Members whose values are appended to, and members inside them whose texts are replaced instead.
_GROWING = {"delta", "logprobs", "text"}
_REPLACED = {"role", "id", "type", "format"}


def _extend_choice(choice: JsonObject, part: JsonObject) -> None:
    """Merge the next event of a choice into `choice`, in place."""
    for key, value in part.items():
        if key in _GROWING:
            _merge_members(choice, {key: value})
        elif value or key not in choice:
            choice[key] = value


def _merge_members(whole: JsonObject, more: JsonObject) -> None:
    """Merge `more` into `whole`, in place: append to texts, lists and objects, replace other values unless empty."""
    for key, value in more.items():
        match whole.get(key), value:
            case StringIO() as old, str():
                old.write(value)
            case None, _:
                whole[key] = value
            case dict(), dict():
                _merge_members(whole[key], cast("JsonObject", value))
            case list(), list():
                _merge_items(whole[key], cast("list[Any]", value))
            case str() as old, str() if key not in _REPLACED:
                whole[key] = StringIO()
                whole[key].write(old + value)
            case _:
                whole[key] = value or whole[key]


def _merge_items(items: list[Any], more: list[Any]) -> None:
    """Merge `more` into `items`, in place: an item continues the one with its index, unless their ids differ."""
    for item in more:
        earlier = next((old for old in reversed(items) if _continues(old, item)), None) if _has_index(item) else None
        if earlier is None:
            items.append(item)
        else:
            _merge_members(earlier, item)


def _has_index(item: object) -> bool:
    return isinstance(item, dict) and "index" in item


def _continues(old: Any, item: JsonObject) -> bool:
    if not _has_index(old) or old["index"] != item["index"]:
        return False
    return item.get("id") in (None, "", old.get("id")) or not old.get("id")


def _as_whole_choice(choice: JsonObject) -> JsonObject:
    """Convert a choice that was merged from events to the form that it has in a whole answer."""
    if "delta" not in choice:
        return choice
    message = {"role": "assistant", "content": None} | msgspec.convert(choice.pop("delta") or {}, JsonObject)
    if message.get("tool_calls"):
        calls = msgspec.convert(message["tool_calls"], list[JsonObject])
        calls.sort(key=lambda call: msgspec.convert(call.pop("index", None) or 0, int))
        message["tool_calls"] = calls
    return choice | {"message": message}


class _ToolCalls(msgspec.Struct):
    tool_calls: list[JsonObject] | None = None


class _ChoiceMessage(msgspec.Struct):
    message: _ToolCalls


class _Completion(msgspec.Struct):
    choices: list[_ChoiceMessage]


# Reasoning and other members come before the content.
_MEMBER_ORDER = {"content": 1, "tool_calls": 2}


def _pieces(choice: JsonObject) -> Iterator[JsonObject]:
    """Yield the choices of the events that stream one choice. Empty members come with the role."""
    index, message = choice.get("index", 0), cast("JsonObject", choice["message"])
    first: JsonObject = {"role": "assistant", "content": "" if isinstance(message.get("content"), str) else None}
    yield _piece(index, first | {key: value for key, value in message.items() if key == "role" or not value})
    members = [key for key, value in message.items() if key != "role" and value]
    rest = {key: value for key, value in choice.items() if key not in {"index", "message"}}
    for key in sorted(members, key=lambda key: _MEMBER_ORDER.get(key, 0)):
        value = message[key]
        if key == "tool_calls":
            value = [call | {"index": number} for number, call in enumerate(value)]
        logprobs = {"logprobs": rest.pop("logprobs")} if key == "content" and "logprobs" in rest else {}
        yield _piece(index, {key: value}, logprobs)
    yield _piece(index, {}, rest | {"finish_reason": choice.get("finish_reason") or "stop"})


def _piece(index: int, delta: JsonObject, more: JsonObject | None = None) -> JsonObject:
    return {"index": index, "delta": delta, "finish_reason": None} | (more or {})


def _event(body: JsonObject) -> bytes:
    return sse.event(msgspec.json.encode(body))
