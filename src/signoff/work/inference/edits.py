"""Edits (`/v1/edits`): call the model's own endpoint, or a chat if the model has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from signoff.core.answer import text_of_content
from signoff.core.endpoints import CHAT
from signoff.core.model import Model
from signoff.engine import Engine, ModelRequest
from signoff.errors import BadRequest, ModelAnswered, ModelGarbled

# Statuses with which servers say that they have no such endpoint.
UNKNOWN_ENDPOINT = {404, 405, 501}
UNEXPECTED_STREAM = "The model sent a stream although the request asked for a whole answer."


class _Edit(msgspec.Struct):
    instruction: str
    input: str = ""


class _Choice(msgspec.Struct):
    message: _Message


class _Message(msgspec.Struct):
    content: str | list[Any] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    created: msgspec.Raw = msgspec.Raw(b"0")
    usage: msgspec.Raw = msgspec.Raw(b"null")


async def run_edit(engine: Engine, model: Model, request: ModelRequest) -> bytes:
    """Return the edit; this endpoint has no streams. Raises BadRequest, ModelFailed or a subclass."""
    whole = msgspec.structs.replace(request, stream=False)
    try:
        return await _answer_whole(engine, model, whole)
    except ModelAnswered as denial:
        if denial.status not in UNKNOWN_ENDPOINT:
            raise
    chat = msgspec.structs.replace(whole, path=CHAT, body=_as_chat(request.body))
    return _as_edit(await _answer_whole(engine, model, chat))


async def _answer_whole(engine: Engine, model: Model, request: ModelRequest) -> bytes:
    body = await engine.answer(model, request, _ForbiddenSink())
    if body is None:
        raise ModelGarbled(UNEXPECTED_STREAM)
    return body


class _ForbiddenSink:
    """Sink for a request that asks for no stream."""

    async def send(self, events: Sequence[bytes]) -> None:
        raise ModelGarbled(UNEXPECTED_STREAM)


def _as_chat(body: bytes) -> bytes:
    """Return a chat body: instruction as the system message, input as the user message, other fields unchanged."""
    try:
        edit = msgspec.json.decode(body, type=_Edit)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The body is not a valid edit request: {error}") from None
    members: dict[str, Any] = msgspec.json.decode(body)
    others = {name: value for name, value in members.items() if name not in {"instruction", "input", "stream"}}
    messages = [{"role": "system", "content": edit.instruction}, {"role": "user", "content": edit.input}]
    return msgspec.json.encode(others | {"messages": messages})


def _as_edit(body: bytes) -> bytes:
    try:
        completion = msgspec.json.decode(body, type=_Completion)
    except msgspec.ValidationError as error:
        raise ModelGarbled(f"The model's answer is not a chat completion: {error}") from error
    texts = [text_of_content(each.message.content) or "" for each in completion.choices]
    choices = [{"text": text, "index": index} for index, text in enumerate(texts)]
    edit = {"object": "edit", "created": completion.created, "choices": choices, "usage": completion.usage}
    return msgspec.json.encode(edit)
