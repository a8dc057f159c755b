"""What a model says: chunks as they come, and the one answer that they amount to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import msgspec

from signoff.core import sse

JsonObject = dict[str, Any]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens, as the upstream counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Chunk(msgspec.Struct, frozen=True):
    """A whole JSON body (`event` is False), or one raw server-sent event of a streamed one."""

    raw: bytes
    event: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A model's answer as one JSON body, and the tokens it took, where they were told."""

    body: bytes
    usage: Usage | None = None


class _Told(msgspec.Struct):
    usage: Usage | None = None


def collect(chunks: Iterable[Chunk]) -> Answer:
    """The answer that `chunks` amount to: the body as it came, or a completion put together from its pieces."""
    listed = list(chunks)
    body = listed[0].raw if listed and not listed[0].event else _assembled(listed)
    return Answer(body=body, usage=_usage_of(body))


def split(answer: bytes, *, with_usage: bool) -> Iterator[Chunk]:
    """A chat completion as the stream it could have been: role, content, tool calls, finish, usage, `[DONE]`."""
    whole: JsonObject = msgspec.json.decode(answer)
    head = {key: value for key, value in whole.items() if key not in {"choices", "usage"}}
    head["object"] = "chat.completion.chunk"
    for choice in cast("list[JsonObject]", whole.get("choices") or []):
        for piece in _pieces(choice):
            yield _chunk(head | {"choices": [piece]})
    if with_usage:
        yield _chunk(head | {"choices": [], "usage": whole.get("usage")})
    yield Chunk(sse.DONE, event=True)


def text_of(body: bytes | None) -> str | None:
    """The words of an answer, where it has the shape of a completion; else None."""
    try:
        choice = msgspec.json.decode(body or b"null", type=_Choices).choices[0]
    except (msgspec.DecodeError, IndexError):
        return None
    return choice.message.content if choice.message else choice.text


def with_text(body: bytes, text: str) -> bytes:
    """The answer with other words; a body that is no completion becomes those words."""
    try:
        whole: JsonObject = msgspec.json.decode(body, type=dict[str, Any])
        choice = whole["choices"][0]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError):
        return msgspec.json.encode(text)
    if "message" in choice:
        choice["message"]["content"] = text
    else:
        choice["text"] = text
    return msgspec.json.encode(whole)


def completion_of(text: str, model: str) -> bytes:
    """A chat completion that says `text`: what a reviewer's bare words become at a door that speaks completions."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return msgspec.json.encode({"object": "chat.completion", "model": model, "choices": [choice]})


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None


class _Choices(msgspec.Struct):
    choices: list[_Choice]


def _usage_of(body: bytes) -> Usage | None:
    try:
        return msgspec.json.decode(body, type=_Told).usage
    except msgspec.DecodeError:
        return None


def _assembled(chunks: list[Chunk]) -> bytes:
    whole: JsonObject = {}
    choices: dict[int, JsonObject] = {}
    for chunk in chunks:
        data = sse.data_of(chunk.raw)
        if not data or data == b"[DONE]":
            continue
        piece: JsonObject = msgspec.json.decode(data)
        for choice in cast("list[JsonObject]", piece.pop("choices", None) or []):
            index = int(choice.get("index", 0))
            choices[index] = _merged(choices.get(index, {}), choice)
        whole |= {key: value for key, value in piece.items() if value is not None}
    kind = str(whole.get("object", "chat.completion"))
    whole["object"] = kind.removesuffix(".chunk")
    whole["choices"] = [_finished(choices[index]) for index in sorted(choices)]
    return msgspec.json.encode(whole)


_REPLACED = {"role", "id", "type", "finish_reason", "index"}


def _merged(left: JsonObject, right: JsonObject) -> JsonObject:
    """`left` continued by `right`: text grows, indexed lists merge by index, other lists grow."""
    whole = dict(left)
    for key, value in right.items():
        old = whole.get(key)
        if value is None and key in whole:
            continue
        if isinstance(old, dict) and isinstance(value, dict):
            whole[key] = _merged(cast("JsonObject", old), cast("JsonObject", value))
        elif isinstance(old, list) and isinstance(value, list):
            whole[key] = _merged_lists(cast("list[Any]", old), cast("list[Any]", value))
        elif isinstance(old, str) and isinstance(value, str) and key not in _REPLACED:
            whole[key] = old + value
        else:
            whole[key] = value
    return whole


def _merged_lists(left: list[Any], right: list[Any]) -> list[Any]:
    if not all(isinstance(item, dict) and "index" in item for item in left + right):
        return left + right
    by_index: dict[int, JsonObject] = {item["index"]: item for item in left}
    for item in right:
        by_index[item["index"]] = _merged(by_index.get(item["index"], {}), item)
    return [by_index[index] for index in sorted(by_index)]


def _finished(choice: JsonObject) -> JsonObject:
    """A choice of a stream in the form it has in a whole answer."""
    if "delta" not in choice:
        return choice
    message: JsonObject = {"role": "assistant", "content": None} | choice["delta"]
    calls = cast("list[JsonObject] | None", message.get("tool_calls"))
    if calls:
        message["tool_calls"] = [{key: value for key, value in call.items() if key != "index"} for call in calls]
    return {key: value for key, value in choice.items() if key != "delta"} | {"message": message}


def _pieces(choice: JsonObject) -> Iterator[JsonObject]:
    index, message = choice.get("index", 0), cast("JsonObject", choice.get("message") or {})
    yield _piece(index, {"role": message.get("role", "assistant"), "content": ""})
    for key, value in message.items():
        if key == "tool_calls" and value:
            yield _piece(index, {key: [{"index": number} | call for number, call in enumerate(value)]})
        elif key != "role" and value:
            yield _piece(index, {key: value}, logprobs=choice.get("logprobs") if key == "content" else None)
    yield _piece(index, {}, finish_reason=choice.get("finish_reason") or "stop")


def _piece(index: int, delta: JsonObject, **more: Any) -> JsonObject:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | more


def _chunk(body: JsonObject) -> Chunk:
    return Chunk(sse.event(msgspec.json.encode(body)), event=True)
