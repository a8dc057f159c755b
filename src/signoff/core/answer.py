"""What a model says: chunks as they come, and the one answer that they amount to."""

from __future__ import annotations

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


class Chunk(msgspec.Struct, frozen=True):
    """A whole JSON body (`event` is False), or one raw server-sent event of a streamed one."""

    raw: bytes
    event: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A model's answer as one JSON body, the tokens it took, where they were told, and what it left at its upstream."""

    body: bytes
    usage: Usage | None = None
    upstream_object_id: str | None = None


def collect(chunks: Iterable[Chunk], request_body: bytes | None = None) -> Answer:
    """The answer that `chunks` amount to: the body as it came, or a completion put together from its pieces.

    With `asked`, the request's body, the tokens of a stream that does not tell them are counted. Raises ModelGarbled
    for what is not JSON, and for pieces that are no completion's.
    """
    listed = list(chunks)
    try:
        if listed and not listed[0].event:
            return Answer(body=listed[0].raw, usage=parse_usage(listed[0].raw))
        body, pieces = _assembled(listed)
        return Answer(body=body, usage=parse_usage(body) or _counted(request_body, pieces))
    except (ValueError, RecursionError) as error:
        raise ModelGarbled(f"The model's answer cannot be read: {error}") from error


def has_a_known_shape(chunks: Sequence[Chunk]) -> bool:
    """Whether `collect` knows what they amount to: one body, or pieces of a completion or a response."""
    return any(not chunk.event or _has_known_shape(sse.data_of(chunk.raw)) for chunk in chunks)


def as_binary(chunks: Sequence[Chunk], request_body: bytes) -> Answer:
    """A stream of any other shape, which is kept as a parcel."""
    binary = BinaryBody(sse.CONTENT_TYPE, b"".join(chunk.raw for chunk in chunks))
    return Answer(body=encode_binary(binary), usage=usage_so_far(chunks, request_body))


def usage_so_far(chunks: Iterable[Chunk], request_body: bytes) -> Usage | None:
    """The tokens of an answer that was cut, or tells none: as they were told last, else counted as far as it came."""
    told, pieces = None, 0
    for chunk in chunks:
        data = sse.data_of(chunk.raw) if chunk.event else chunk.raw
        try:
            told = parse_usage(data) or told
            pieces += _is_piece(msgspec.json.decode(data)) if chunk.event else count_answer_tokens(data)
        except (ValueError, RecursionError):  # `[DONE]`, a comment, or what the answer was cut for
            continue
    return told or _counted(request_body, pieces)


def split(answer: bytes, *, with_usage: bool) -> Iterator[Chunk]:
    """A chat completion as the stream it could have been: role, content, tool calls, finish, usage, `[DONE]`.

    Any other JSON is what the completion says.
    """
    whole: JsonObject = msgspec.json.decode(as_completion(answer, ""))
    head = {key: value for key, value in whole.items() if key not in {"choices", "usage"}}
    head["object"] = "chat.completion.chunk"
    for choice in whole["choices"]:
        for piece in _pieces(choice):
            yield _chunk(head | {"choices": [piece]})
    if with_usage and whole.get("usage"):
        yield _chunk(head | {"choices": [], "usage": whole["usage"]})
    yield Chunk(sse.DONE, event=True)


def answer_text(body: bytes | None) -> str | None:
    """The words of an answer, where it has the shape of a completion or a response; else None."""
    try:
        choice = msgspec.json.decode(body or b"null", type=_Choices).choices[0]
    except (ValueError, IndexError, RecursionError):
        return response.response_text(body or b"null")
    return choice.message.content if choice.message else choice.text


def text_or_json(body: bytes | None) -> str:
    """An answer as a text: its words, else its JSON as it is written."""
    text = answer_text(body)
    if text is not None:
        return text
    body = body or b"null"
    return msgspec.json.decode(body, type=str) if body.startswith(b'"') else body.decode()


def content_or_json(body: bytes) -> str | msgspec.Raw:
    """The words of an answer, else its JSON."""
    text = answer_text(body)
    return msgspec.Raw(body) if text is None else text


def with_text(body: bytes, text: str) -> bytes:
    """The answer with other words; a body that is neither a completion nor a response becomes those words."""
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
    return msgspec.json.encode(whole)


def as_completion(body: bytes, model: str) -> bytes:
    """`body` where it is a chat completion; else one that says it.

    That is for a door that speaks completions: a reviewer may have put bare words, or any JSON, in an answer's place.
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


def _counted(request_body: bytes | None, pieces: int) -> Usage | None:
    return None if request_body is None or not pieces else estimate_usage(request_body, pieces)


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None


class _Choices(msgspec.Struct):
    choices: list[_Choice]


def _assembled(chunks: list[Chunk]) -> tuple[bytes, int]:
    """The completion that the events amount to, and how many of them said something.

    Texts that grow are StringIOs meanwhile, or they would take n² time.
    """
    whole, choices, piece, pieces = JsonObject(), dict[int, JsonObject](), JsonObject(), 0
    for chunk in chunks:
        data = sse.data_of(chunk.raw)
        if not data or data == b"[DONE]":
            continue
        piece = msgspec.json.decode(data, type=JsonObject)
        for part in msgspec.convert(piece.pop("choices", None) or [], list[JsonObject]):
            pieces += _says_something(part)
            index = msgspec.convert(part.get("index") or 0, int)
            _extend_choice(choices.setdefault(index, {}), part)
        whole.update({key: value for key, value in piece.items() if value or key not in whole})
    if str(piece.get("type")).startswith("response."):  # a stream of /v1/responses tells the whole at its end
        return msgspec.json.encode(piece.get("response")), 0
    usual = "text_completion" if any("text" in choice for choice in choices.values()) else "chat.completion"
    whole["object"] = str(whole.get("object") or usual).removesuffix(".chunk")
    whole["choices"] = [_finished(choices[index]) for index in sorted(choices)]
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
    """Whether an event says something: a piece of a completion, or of a response."""
    match event:
        case {"choices": [*choices]}:
            return any(_says_something(cast("JsonObject", choice)) for choice in choices if isinstance(choice, dict))
        case {"type": str() as kind}:
            return kind.endswith(".delta")
        case _:
            return False


def _says_something(part: JsonObject) -> bool:
    """Whether an event brings more of a text, or of a tool's call: about one token."""
    said = part.get("delta")
    if isinstance(said, dict):
        return any(value for name, value in cast("JsonObject", said).items() if name != "role")
    return bool(part.get("text"))


_GROWS = {"delta", "logprobs", "text"}
_IS_REPLACED = {"role", "id", "type", "format"}


def _extend_choice(choice: JsonObject, part: JsonObject) -> None:
    """Adds to a choice, in place, what the next event says of it."""
    for key, value in part.items():
        if key in _GROWS:
            _merge_members(choice, {key: value})
        elif value or key not in choice:
            choice[key] = value


def _merge_members(whole: JsonObject, more: JsonObject) -> None:
    """Adds to members, in place: texts, lists and objects grow, all else is replaced by what is not empty."""
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
            case str() as old, str() if key not in _IS_REPLACED:
                whole[key] = StringIO()
                whole[key].write(old + value)
            case _:
                whole[key] = value or whole[key]


def _merge_items(items: list[Any], more: list[Any]) -> None:
    """Adds items, in place; one with the index of another continues that, unless it has an id of its own."""
    for item in more:
        begun = next((old for old in reversed(items) if _continues(old, item)), None) if _has_index(item) else None
        if begun is None:
            items.append(item)
        else:
            _merge_members(begun, item)


def _has_index(item: object) -> bool:
    return isinstance(item, dict) and "index" in item


def _continues(old: Any, item: JsonObject) -> bool:
    if not _has_index(old) or old["index"] != item["index"]:
        return False
    return item.get("id") in (None, "", old.get("id")) or not old.get("id")


def _finished(choice: JsonObject) -> JsonObject:
    """A choice of a stream in the form it has in a whole answer."""
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


_PLACES = {"content": 1, "tool_calls": 2}


def _pieces(choice: JsonObject) -> Iterator[JsonObject]:
    """What the events of a stream say of one choice. Empty members come with the role, reasoning before the content."""
    index, message = choice.get("index", 0), cast("JsonObject", choice["message"])
    begun: JsonObject = {"role": "assistant", "content": "" if isinstance(message.get("content"), str) else None}
    yield _piece(index, begun | {key: value for key, value in message.items() if key == "role" or not value})
    told = [key for key, value in message.items() if key != "role" and value]
    rest = {key: value for key, value in choice.items() if key not in {"index", "message"}}
    for key in sorted(told, key=lambda key: _PLACES.get(key, 0)):
        value = message[key]
        if key == "tool_calls":
            value = [call | {"index": number} for number, call in enumerate(value)]
        with_it = {"logprobs": rest.pop("logprobs")} if key == "content" and "logprobs" in rest else {}
        yield _piece(index, {key: value}, with_it)
    yield _piece(index, {}, rest | {"finish_reason": choice.get("finish_reason") or "stop"})


def _piece(index: int, delta: JsonObject, more: JsonObject | None = None) -> JsonObject:
    return {"index": index, "delta": delta, "finish_reason": None} | (more or {})


def _chunk(body: JsonObject) -> Chunk:
    return Chunk(sse.event(msgspec.json.encode(body)), event=True)
