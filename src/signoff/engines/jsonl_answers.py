"""Conversion of a program's JSON lines to an answer: one body, or events."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from signoff.core import sse
from signoff.engine import ModelRequest, Sink
from signoff.engines.jsonl import NotDelivered, ProgramMessage
from signoff.errors import (
    ModelAnswered,
    ModelCrashed,
    ModelCut,
    ModelFailed,
    ModelGarbled,
    ModelTimedOut,
    ModelUnreachable,
    Overloaded,
    SignoffError,
    TooLarge,
)

MAX_ERROR_BYTES = 64 * 2**10
MAX_MESSAGE_CHARS = 2000
RELAYED_ERRORS = (ModelCrashed, ModelGarbled, ModelTimedOut, ModelUnreachable, Overloaded, TooLarge)


async def pass_on_answer(messages: AsyncIterator[ProgramMessage], request: ModelRequest, sink: Sink) -> bytes | None:
    """Return the body, or send one event per piece of a stream. Raises ModelFailed and its subclasses.

    A piece that is a JSON string becomes an event of a chat completion; an object is passed on unchanged.
    """
    pieces, has_texts = list[bytes](), False
    try:
        async for message in messages:
            if message.kind == "body":
                break
            if message.kind != "delta":
                raise _failure(message)
            pieces.append(message.raw)
            if request.stream:
                has_texts = has_texts or message.raw.startswith(b'"')
                await sink.send([sse.event(_event(message.raw, request))])
        else:
            raise ModelCut
    except NotDelivered as stopped:
        if request.stream and pieces:  # it was delivered, and must not be sent again
            raise ModelUnreachable(stopped.message) from stopped
        raise
    if not (request.stream and pieces):
        return message.raw if message.raw != b"null" or not pieces else _join(pieces)
    await sink.send([*([sse.event(_completion(request, {}, "stop"))] if has_texts else []), sse.DONE])
    return None


def _event(piece: bytes, request: ModelRequest) -> bytes:
    if piece.startswith(b"{"):
        return piece
    if piece.startswith(b'"'):
        return _completion(request, {"content": msgspec.Raw(piece)}, None)
    raise ModelGarbled("The program wrote a `delta` that is neither a string nor an object; correct the program.")


def _completion(request: ModelRequest, delta: dict[str, Any], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-lines", "object": "chat.completion.chunk", "created": 0, "model": request.target}
    return msgspec.json.encode(head | {"choices": [choice]})


def _join(pieces: list[bytes]) -> bytes:
    """Return the pieces of an answer whose end has no body: one string if all are strings, else a list."""
    values: list[Any] = [msgspec.json.decode(piece) for piece in pieces]
    return msgspec.json.encode("".join(values) if all(isinstance(value, str) for value in values) else values)


class _ErrorObject(msgspec.Struct):
    message: str = ""
    status: int = ModelFailed.status
    code: str | int | None = None


def _failure(message: ProgramMessage) -> SignoffError:
    """Return the error in a program's object or string, or in the failure reported by the owner of its process."""
    try:
        error = msgspec.json.decode(message.raw, type=_ErrorObject | str)
    except msgspec.ValidationError:
        error = message.raw.decode()
    if isinstance(error, str):
        error = _ErrorObject(error)
    if message.kind == "failure":
        kind = next((kind for kind in RELAYED_ERRORS if kind.code == error.code), ModelFailed)
        return kind(error.message)
    text = error.message[:MAX_MESSAGE_CHARS] or "The model failed without an error message."
    if 400 <= error.status < 600 and error.status != ModelFailed.status:
        return ModelAnswered(error.status, text, body=message.raw[:MAX_ERROR_BYTES])
    return ModelFailed(text)
