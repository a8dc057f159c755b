"""What a program said in lines, as the chunks of an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from signoff.core import sse
from signoff.core.answer import Chunk
from signoff.engine import ModelRequest
from signoff.engines.jsonl import ProgramMessage
from signoff.errors import (
    ModelAnswered,
    ModelCrashed,
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
TOLD = (ModelCrashed, ModelGarbled, ModelTimedOut, ModelUnreachable, Overloaded, TooLarge)


async def chunks_of(talk: AsyncIterator[ProgramMessage], request: ModelRequest) -> AsyncIterator[Chunk]:
    """The body; for a stream, an event for each piece. Raises ModelFailed and its kin.

    A piece that is a text is one of a chat completion's; an object passes as it is.
    """
    pieces, has_texts = list[bytes](), False
    async for said in talk:
        if said.kind == "delta":
            pieces.append(said.raw)
            if request.stream:
                has_texts = has_texts or said.raw.startswith(b'"')
                yield Chunk(sse.event(_event(said.raw, request)), event=True)
        elif said.kind != "body":
            raise _failure(said)
        elif not (request.stream and pieces):
            yield Chunk(said.raw if said.raw != b"null" or not pieces else _joined(pieces))
        else:
            if has_texts:
                yield Chunk(sse.event(_completion(request, {}, "stop")), event=True)
            yield Chunk(sse.DONE, event=True)


def _event(piece: bytes, request: ModelRequest) -> bytes:
    if piece.startswith(b"{"):
        return piece
    if piece.startswith(b'"'):
        return _completion(request, {"content": msgspec.Raw(piece)}, None)
    raise ModelGarbled("A piece of a stream is a text or an object.")


def _completion(request: ModelRequest, delta: dict[str, Any], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-lines", "object": "chat.completion.chunk", "created": 0, "model": request.target}
    return msgspec.json.encode(head | {"choices": [choice]})


def _joined(pieces: list[bytes]) -> bytes:
    """The pieces of an answer whose end says nothing: one text if they are texts, else a list."""
    values: list[Any] = [msgspec.json.decode(piece) for piece in pieces]
    return msgspec.json.encode("".join(values) if all(isinstance(value, str) for value in values) else values)


class _Told(msgspec.Struct):
    message: str = ""
    status: int = ModelFailed.status
    code: str | int | None = None


def _failure(said: ProgramMessage) -> SignoffError:
    """The error that a program tells in an object or in a text, or that the owner of its process tells."""
    try:
        told = msgspec.json.decode(said.raw, type=_Told | str)
    except msgspec.ValidationError:
        told = said.raw.decode()
    if isinstance(told, str):
        told = _Told(told)
    if said.kind == "failure":
        kind = next((kind for kind in TOLD if kind.code == told.code), ModelFailed)
        return kind(told.message)
    message = told.message[:MAX_MESSAGE_CHARS] or "The model could not answer, and did not say why."
    if 400 <= told.status < 600 and told.status != ModelFailed.status:
        return ModelAnswered(told.status, message, body=said.raw[:MAX_ERROR_BYTES])
    return ModelFailed(message)
