"""Answers of models: whole JSON bodies, and the server-sent events that add up to one."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import msgspec

from signoff.core import sse
from signoff.core.binary import BinaryBody, encode_binary
from signoff.core.decode import JsonObject, as_object
from signoff.core.dialects import messages, response
from signoff.core.dialects.assembly import assemble, decode_payloads, is_content
from signoff.core.dialects.reported_usage import Counts, parse_usage, read_counts, usage_of_counts
from signoff.core.dialects.response_stream import is_response_event
from signoff.core.fingerprint import fingerprint
from signoff.core.tokens import Usage, count_answer_tokens, estimate_usage
from signoff.errors import ModelGarbled


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer of a model."""

    body: bytes
    """JSON; an answer of another kind is a `BinaryBody` in JSON."""
    usage: Usage | None = None
    """Tokens of the answer; None where they are not known."""
    upstream_object_id: str | None = None
    """Id of the object that the request created at the upstream, such as a response or a file."""
    logprobs: tuple[float, ...] = ()
    """Log-probabilities of the tokens, if the body was translated from a chat that had them."""
    is_unwritten: bool = False
    """True if a person is yet to write the answer; `body` is null then."""


def unwritten_answer(request_body: bytes) -> Answer:
    """Return the answer that a person is yet to write, with an estimate of the tokens of its request."""
    return Answer(body=b"null", usage=estimate_usage(request_body, 0), is_unwritten=True)


def parse_answer(body: bytes) -> Answer:
    """Return the answer with this JSON body. Raises ModelGarbled if it is not JSON."""
    try:
        return Answer(body=body, usage=parse_usage(body))
    except (ValueError, RecursionError) as error:
        raise ModelGarbled(f"The model's answer is not JSON: {error}") from error


def collect(events: Iterable[bytes], request_body: bytes | None = None) -> Answer:
    """Return the answer that the server-sent `events` of a completion, a response or a message add up to.

    With `request_body`, the tokens of a stream that does not report them are estimated.

    Raises:
        ModelGarbled: an event is not JSON, or not of such a stream.
    """
    try:
        body, pieces = assemble(events)
        return Answer(body=body, usage=parse_usage(body) or _estimate(request_body, pieces))
    except (ValueError, RecursionError) as error:
        raise ModelGarbled(f"The model's answer is not a stream of a known form: {error}") from error


def has_a_known_shape(events: Iterable[bytes], *, with_messages: bool = False) -> bool:
    """Return True if `collect` can read `events`: those of a completion, a response or, if asked for, a message."""
    return any(_is_known_payload(payload, with_messages=with_messages) for payload in decode_payloads(events))


def _is_known_payload(payload: object, *, with_messages: bool) -> bool:
    match payload:
        case {"choices": list()}:
            return True
        case {"type": str()}:
            event = cast("JsonObject", payload)
            return is_response_event(event) or (with_messages and messages.is_message_event(event))
        case _:
            return False


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
    """Return the tokens of a stream, even if it was cut: as last reported, else an estimate up to its end.

    The counts of several events add up to one report, such as Anthropic's: the prompt first, the answer at the end.
    """
    counts, pieces = Counts(), 0
    for payload in decode_payloads(events):
        counts |= read_counts(payload)
        pieces += is_content(payload)
    usage = usage_of_counts(counts)
    if usage is not None and not usage.completion_tokens:
        usage = msgspec.structs.replace(usage, completion_tokens=pieces)
    return usage or _estimate(request_body, pieces)


def completion_events(answer: bytes, *, with_usage: bool) -> Iterator[bytes]:
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
    """Return the text of a completion, a response or a message; None for another shape, or without text."""
    try:
        choice = msgspec.json.decode(body or b"null", type=_Choices).choices[0]
    except (ValueError, IndexError, RecursionError):
        return response.response_text(body or b"null") or messages.message_text(body or b"null")
    return choice.text if choice.message is None else text_of_content(choice.message.content)


def text_of_content(content: object) -> str | None:
    """Return the text of the content of a message: a string, or blocks, of which thoughts are no text."""
    if not isinstance(content, list):
        return _text_of_block(content)
    texts = [_text_of_block(block) for block in cast("list[object]", content)]
    return "".join(text for text in texts if text is not None) if any(text is not None for text in texts) else None


def _text_of_block(block: object) -> str | None:
    match block:
        case str():
            return block
        case {"text": str() as text}:
            kind = cast("JsonObject", block).get("type", "text")
            return text if kind in {"text", "output_text"} else None
        case _:
            return None


def text_or_json(body: bytes | None) -> str:
    """Return the text of an answer, else its JSON as it is written; a JSON string is its value."""
    text = answer_text(body)
    if text is not None:
        return text
    body = body or b"null"
    return msgspec.json.decode(body, type=str) if body.startswith(b'"') else body.decode()


def content_or_json(body: bytes) -> str | msgspec.Raw:
    """Return the text of an answer, else its JSON; that of a completion or a response is always a text."""
    text = answer_text(body)
    if text is not None:
        return text
    return body.decode() if _has_choices(body) or response.is_response(body) else msgspec.Raw(body)


def _has_choices(body: bytes) -> bool:
    try:
        return msgspec.json.decode(body, type=_AnyChoices).choices is not None
    except (ValueError, RecursionError):
        return False


def with_text(body: bytes, text: str) -> bytes:
    """Return the answer with `text` as all that it says; a body of another form becomes `text`.

    The envelope stays: id, time, model and usage. Further choices, calls of tools and reasoning go.
    """
    if response.is_response(body):
        return response.with_response_text(body, text)
    if messages.is_message(body):
        return messages.with_message_text(body, text)
    try:
        whole = msgspec.json.decode(body, type=JsonObject)
        choice = msgspec.convert(whole.get("choices"), list[JsonObject])[0]
    except (ValueError, IndexError, RecursionError):
        return msgspec.json.encode(text)
    return msgspec.json.encode(whole | {"choices": [_text_choice(choice, text)]})


def _text_choice(choice: JsonObject, text: str) -> JsonObject:
    """Return a choice that says `text`, with the members of `choice` that are true of any text."""
    ending = {name: value for name, value in (("logprobs", None), ("finish_reason", "stop")) if name in choice}
    message = choice.get("message")
    if not isinstance(message, dict):
        return {"index": 0, "text": text, **ending}
    members = cast("JsonObject", message)
    refusal = {"refusal": None} if "refusal" in members else {}
    message = {"role": members.get("role") or "assistant", "content": text, **refusal}
    return {"index": 0, "message": message, **ending}


def is_completion(body: bytes) -> bool:
    """Return True if `body` has the form of a chat completion. Raises ValueError, RecursionError if it is not JSON."""
    try:
        msgspec.json.decode(body, type=_Completion)
    except msgspec.ValidationError:
        return False
    return True


def as_completion(body: bytes, model: str, *, created: int = 0, seed: str = "") -> bytes:
    """Return `body` if it is a chat completion, else a completion of `model` with `body` as its content.

    A reviewer may have replaced an answer by a bare text or any JSON, and a chat door must answer with a completion.
    `created` is its time, in seconds since 1970; its id depends on `seed` too.
    """
    if is_completion(body):
        return body
    message = {"role": "assistant", "content": text_or_json(body)}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    name = f"chatcmpl-{fingerprint(model.encode(), body, seed.encode())[:16]}"
    head = {"id": name, "object": "chat.completion", "created": created, "model": model}
    return msgspec.json.encode(head | {"choices": [choice]})


def _estimate(request_body: bytes | None, pieces: int) -> Usage | None:
    return None if request_body is None or not pieces else estimate_usage(request_body, pieces)


class _Message(msgspec.Struct):
    content: Any = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None


class _Choices(msgspec.Struct):
    choices: list[_Choice]


class _AnyChoices(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None


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
            yield from _call_pieces(index, value)
            continue
        logprobs = {"logprobs": rest.pop("logprobs")} if key == "content" and "logprobs" in rest else {}
        yield _piece(index, {key: value}, logprobs)
    yield _piece(index, {}, rest | {"finish_reason": choice.get("finish_reason") or "stop"})


def _call_pieces(index: int, calls: list[JsonObject]) -> Iterator[JsonObject]:
    """Yield the choices of the events that stream calls of tools: first what a call is, and then its arguments."""
    for number, call in enumerate(calls):
        head, kind = call | {"index": number}, "custom" if call.get("type") == "custom" else "function"
        function, member = as_object(call.get(kind)), "input" if kind == "custom" else "arguments"
        if not (arguments := function.get(member)):
            yield _piece(index, {"tool_calls": [head]})
            continue
        yield _piece(index, {"tool_calls": [head | {kind: function | {member: ""}}]})
        yield _piece(index, {"tool_calls": [{"index": number, kind: {member: arguments}}]})


def _piece(index: int, delta: JsonObject, more: JsonObject | None = None) -> JsonObject:
    return {"index": index, "delta": delta, "finish_reason": None} | (more or {})


def _event(body: JsonObject) -> bytes:
    return sse.event(msgspec.json.encode(body))
