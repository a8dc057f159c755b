"""The fake that ships: a model that repeats what it is told, and misbehaves when its name asks it to."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Annotated

import msgspec

from signoff.core import endpoints, sse
from signoff.core.answer import Chunk, Usage
from signoff.core.model import Model
from signoff.engine import ModelRequest
from signoff.engines.echo_endpoints import EchoResponse, embeddings, moderations, ranks
from signoff.errors import BadBody, BadRequest, ModelAnswered, ModelCut, ModelTimedOut

Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]

# A word with the space before it, so that the pieces joined are the text.
_PIECE = re.compile(r"\s*\S+|\s+")
_WORD = re.compile(r"\S+")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an echo shall answer."""

    delay: Seconds = 0
    chunk_delay: Seconds = 0
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    retry_after: Seconds | None = None
    hang: bool = False
    cut: bool = False
    tokens: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None


class EchoEngine:
    """Answers with the last user message, the prompt or the input, else with the body itself."""

    async def answer(self, model: Model, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        """A completion as one chunk, or as events, one a word. The same request is answered by the same bytes.

        Raises what the target's options ask for, BadRequest when they make no sense.
        """
        options = options_of(model, request.target)
        until = asyncio.get_running_loop().time() + model.timeouts.total_seconds
        if options.hang or options.delay:
            await _pause(None if options.hang else options.delay, until)
        if options.status is not None:
            message = f"The echo was asked to fail with status {options.status}."
            raise _error(options.status, options.retry_after, message)
        told = _answer(request, options.tokens)
        if isinstance(told, bytes) or not request.stream:
            if options.cut:
                raise ModelCut
            yield Chunk(told if isinstance(told, bytes) else told.whole())
            return
        half = sum(1 for _ in told.events()) // 2 if options.cut else None
        for number, event in enumerate(islice(told.events(), half)):
            if number:
                await _pause(options.chunk_delay, until)
            yield Chunk(event, event=True)
        if options.cut:
            raise ModelCut

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to close."""


def options_of(model: Model, target: str) -> Options:
    """What `target` asks of `model`: what follows the first `/` after its name. Raises BadRequest."""
    name = model.name.removesuffix("*")
    asked = target.removeprefix(name).partition("/")[2] if target.startswith(name) else ""
    items = [item.partition("=") for item in asked.split(",") if item]
    told = {option: value if equals else "true" for option, equals, value in items}
    try:
        return msgspec.convert(told, Options, strict=False)
    except msgspec.ValidationError as error:
        valid = ", ".join(Options.__struct_fields__)
        raise BadRequest(f"{target}: {error}. Valid, joined by commas: {valid}.") from error


async def _pause(seconds: float | None, until: float) -> None:
    """Waits (for ever when `seconds` is None), but never longer than `until` on the loop's clock."""
    if seconds == 0:
        # Even the fastest model leaves others their turn.
        return await asyncio.sleep(0)
    try:
        async with asyncio.timeout_at(until):
            await (asyncio.Event().wait() if seconds is None else asyncio.sleep(seconds))
    except TimeoutError as error:
        raise ModelTimedOut from error


def _error(status: int, retry_after_seconds: float | None, message: str) -> ModelAnswered:
    body = {"error": {"message": message, "type": "echo_error", "param": None, "code": None}}
    return ModelAnswered(status, message, body=msgspec.json.encode(body), retry_after_seconds=retry_after_seconds)


def _answer(request: ModelRequest, tokens: int | None) -> _Completion | EchoResponse | bytes:
    """What can be told whole or as events, or the one body of an endpoint without streams."""
    match request.path:
        case endpoints.CHAT | endpoints.COMPLETIONS:
            return _completion(request, tokens)
        case endpoints.RESPONSES:
            said = _completion(request, tokens)
            return EchoResponse(digest=said.digest, model=said.model, text=said.text, usage=said.usage)
        case endpoints.EMBEDDINGS:
            return embeddings(request.body, request.target)
        case endpoints.MODERATIONS:
            return moderations(request.body, request.target)
        case endpoints.RERANK:
            return ranks(request.body, request.target)
        case path:
            raise _error(404, None, f"An echo knows no {path}.")


def _completion(request: ModelRequest, tokens: int | None) -> _Completion:
    asked = _asked(request.body)
    said = _said(asked, request.body)
    text = said if tokens is None else _words(said, tokens)
    told = _count(said)
    answered = told if tokens is None else _count(text)
    return _Completion(
        digest=hashlib.sha256(request.target.encode() + b"\0" + request.body).hexdigest()[:16],
        model=request.target,
        text=text,
        is_chat=request.path != endpoints.COMPLETIONS,
        usage=Usage(prompt_tokens=told, completion_tokens=answered, total_tokens=told + answered),
        usage_wanted=bool(asked.stream_options and asked.stream_options.include_usage),
    )


def _words(text: str, count: int) -> str:
    words = [word[0] for word in islice(_WORD.finditer(text), count)]
    return " ".join(islice(cycle(words or ["token"]), count))


def _count(text: str) -> int:
    """How many words; without a list of them, since a body may have ten million."""
    return sum(1 for _ in _WORD.finditer(text))


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Asked(msgspec.Struct):
    messages: list[_Message] = []
    prompt: str | list[str] | None = None
    input: str | list[_Message] | None = None
    stream_options: _StreamOptions | None = None


def _asked(body: bytes) -> _Asked:
    try:
        return msgspec.json.decode(body, type=_Asked)
    except (ValueError, RecursionError):
        return _Asked()


def _said(asked: _Asked, body: bytes) -> str:
    messages = asked.input if isinstance(asked.input, list) else asked.messages
    said = [message.content for message in messages if message.role == "user"]
    if said:
        content = said[-1] or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)
    if asked.prompt is not None:
        return asked.prompt if isinstance(asked.prompt, str) else "\n".join(asked.prompt)
    if isinstance(asked.input, str):
        return asked.input
    try:
        return msgspec.json.format(body, indent=-1).decode()
    except (ValueError, RecursionError) as error:
        raise BadBody from error


class _Completion(msgspec.Struct, frozen=True, kw_only=True):
    digest: str
    model: str
    text: str
    is_chat: bool
    usage: Usage
    usage_wanted: bool

    def whole(self) -> bytes:
        said = {"message": {"role": "assistant", "content": self.text}} if self.is_chat else {"text": self.text}
        return self._body("chat.completion", [_choice(said, finish="stop")], self.usage)

    def events(self) -> Iterator[bytes]:
        """A role (in a chat), the words, the finish, the usage if it is wanted, and `[DONE]`."""
        if self.is_chat:
            yield self._event(_choice({"delta": {"role": "assistant", "content": ""}}))
        for piece in _PIECE.finditer(self.text):
            yield self._event(_choice({"delta": {"content": piece[0]}} if self.is_chat else {"text": piece[0]}))
        yield self._event(_choice({"delta": {}} if self.is_chat else {"text": ""}, finish="stop"))
        if self.usage_wanted:
            yield self._event(usage=self.usage)
        yield sse.DONE

    def _event(self, *choices: _Choice, usage: Usage | None = None) -> bytes:
        return sse.event(self._body("chat.completion.chunk", choices, usage))

    def _body(self, kind: str, choices: Sequence[_Choice], usage: Usage | None) -> bytes:
        body = {
            "id": f"chatcmpl-{self.digest}" if self.is_chat else f"cmpl-{self.digest}",
            "object": kind if self.is_chat else "text_completion",
            "created": 0,
            "model": self.model,
            "choices": choices,
        }
        return msgspec.json.encode(body if usage is None else body | {"usage": _told(usage)})


def _told(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


_Choice = dict[str, object]


def _choice(said: Mapping[str, object], finish: str | None = None) -> _Choice:
    return {"index": 0, **said, "logprobs": None, "finish_reason": finish}
