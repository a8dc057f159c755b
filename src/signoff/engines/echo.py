"""The fake model that ships with the server: it repeats its input, and fails on request."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Annotated

import msgspec

from signoff.core import api_paths, sse
from signoff.core.model import Model, Timeouts
from signoff.core.tokens import Usage
from signoff.engine import ModelRequest, Sink
from signoff.engines.echo_answers import PIECE, EchoResponse, embeddings, moderations, ranks
from signoff.engines.upstream_errors import answered_error
from signoff.errors import BadBody, BadRequest, ModelAnswered, ModelCut, ModelTimedOut

MAX_ANSWER_BYTES = 16 * 1024 * 1024
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]

_WORD = re.compile(r"\S+")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of an echo, which are part of the model's name: `echo/delay=0.2,status=503`. Times are in seconds."""

    delay: Seconds = 0
    """Time before the first byte."""
    chunk_delay: Seconds = 0
    """Time between two events of a stream."""
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    """HTTP status to fail with; None: success."""
    retry_after: Seconds | None = None
    """Time in the header `Retry-After` of a failure with `status`; None for no header."""
    hang: bool = False
    """True to send nothing until the time limit."""
    cut: bool = False
    """True to break off: a stream after half of its events, any other answer before its body."""
    tokens: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    """Number of words in the answer; None: as many as in the input."""


class EchoEngine:
    """Engine that answers with the last user message, the prompt or the input, or else with the body itself.

    With `faults`, callers may also request delays, which occupy workers, and failures.
    """

    def __init__(self, *, faults: bool = False) -> None:
        self._faults = faults

    async def answer(self, model: Model, request: ModelRequest, sink: Sink) -> bytes | None:
        """Return a completion, or send one event per word. Equal requests get equal bytes.

        Raises the errors that the target's options ask for, and BadRequest for options that are not valid.
        """
        options = options_of(model, request.target)
        if not self._faults and options != Options(tokens=options.tokens):
            raise BadRequest(
                f"The options of {request.target!r} need the setting `echo_faults` of the server; "
                "without it, only `tokens` is allowed."
            )
        deadline = asyncio.get_running_loop().time() + model.timeouts.total_seconds
        if options.hang or options.delay:
            await _pause(None if options.hang else options.delay, deadline, model.timeouts)
        if options.status is not None:
            message = f"The echo model fails with status {options.status}, as its name requests."
            raise _error(options.status, options.retry_after, message)
        completion = _answer(request, options.tokens)
        if isinstance(completion, bytes) or not request.stream:
            if options.cut:
                raise ModelCut
            return completion if isinstance(completion, bytes) else completion.whole()
        half = sum(1 for _ in completion.events()) // 2 if options.cut else None
        for number, event in enumerate(islice(completion.events(), half)):
            if number:
                await _pause(options.chunk_delay, deadline, model.timeouts)
            await sink.send([event])
        if options.cut:
            raise ModelCut
        return None

    async def start(self) -> None:
        """See `engine.Engine`: nothing to start."""

    async def close(self) -> None:
        """See `engine.Engine`: nothing to close."""


def options_of(model: Model, target: str) -> Options:
    """Parse the options in `target`: the part after the first `/` that follows the model's name. Raises BadRequest."""
    name = model.name.removesuffix("*")
    suffix = target.removeprefix(name).partition("/")[2] if target.startswith(name) else ""
    items = [item.partition("=") for item in suffix.split(",") if item]
    values = {option: value if equals else "true" for option, equals, value in items}
    try:
        return msgspec.convert(values, Options, strict=False)
    except msgspec.ValidationError as error:
        valid = ", ".join(Options.__struct_fields__)
        raise BadRequest(f"The options of {target!r} are not valid: {error}. Valid ones: {valid}.") from error


async def _pause(seconds: float | None, deadline: float, timeouts: Timeouts) -> None:
    """Sleep for `seconds` (forever if None), at most until `deadline` on the loop's clock. Raises ModelTimedOut."""
    if seconds == 0:
        # Let other tasks run, as every real model does.
        return await asyncio.sleep(0)
    try:
        async with asyncio.timeout_at(deadline):
            await (asyncio.Event().wait() if seconds is None else asyncio.sleep(seconds))
    except TimeoutError as error:
        raise ModelTimedOut(f"The model {timeouts.fault('total_seconds')}.") from error


def _error(status: int, retry_after_seconds: float | None, message: str) -> ModelAnswered:
    body = {"error": {"message": message, "type": "echo_error", "param": None, "code": None}}
    return answered_error(status, msgspec.json.encode(body), retry_after_seconds=retry_after_seconds)


def _answer(request: ModelRequest, tokens: int | None) -> _Completion | EchoResponse | bytes:
    """Return a completion, which can be sent whole or as events, or the body of a path without streams."""
    match request.path:
        case api_paths.CHAT | api_paths.COMPLETIONS:
            return _completion(request, tokens)
        case api_paths.RESPONSES:
            reply = _completion(request, tokens)
            return EchoResponse(digest=reply.digest, model=reply.model, text=reply.text, usage=reply.usage)
        case api_paths.EMBEDDINGS:
            return embeddings(request.body, request.target)
        case api_paths.MODERATIONS:
            return moderations(request.body, request.target)
        case api_paths.RERANK:
            return ranks(request.body, request.target)
        case path:
            raise _error(404, None, f"Models of the kind echo do not support the endpoint {path}.")


def _completion(request: ModelRequest, tokens: int | None) -> _Completion:
    parsed = _parse(request.body)
    echoed = _echoed_text(parsed, request.body)
    text = echoed if tokens is None else _words(echoed, tokens)
    prompt_count = _count(echoed)
    text_count = prompt_count if tokens is None else _count(text)
    usage = Usage(prompt_tokens=prompt_count, completion_tokens=text_count, total_tokens=prompt_count + text_count)
    return _Completion(
        digest=hashlib.sha256(request.target.encode() + b"\0" + request.body).hexdigest()[:16],
        model=request.target,
        text=text,
        is_chat=request.path != api_paths.COMPLETIONS,
        usage=usage,
        usage_wanted=bool(parsed.stream_options and parsed.stream_options.include_usage),
    )


def _words(text: str, count: int) -> str:
    """Return `count` words, those of `text` again and again. Raises BadRequest if they are too large together."""
    words = [word[0] for word in islice(_WORD.finditer(text), count)] or ["token"]
    size_bytes = sum(len(word.encode()) + 1 for word in words) * (count // len(words) + 1)
    if size_bytes > MAX_ANSWER_BYTES + len(text.encode()):
        raise BadRequest(f"`tokens` must ask for at most {MAX_ANSWER_BYTES} bytes; lower it, or send shorter words.")
    return " ".join(islice(cycle(words), count))


def _count(text: str) -> int:
    """Count the words without building a list of them, since a body may have ten million."""
    return sum(1 for _ in _WORD.finditer(text))


class _ContentPart(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[_ContentPart] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _RequestBody(msgspec.Struct):
    messages: list[_Message] = []
    prompt: str | list[str] | None = None
    input: str | list[_Message] | None = None
    stream_options: _StreamOptions | None = None


def _parse(body: bytes) -> _RequestBody:
    try:
        return msgspec.json.decode(body, type=_RequestBody)
    except (ValueError, RecursionError):
        return _RequestBody()


def _echoed_text(parsed: _RequestBody, body: bytes) -> str:
    messages = parsed.input if isinstance(parsed.input, list) else parsed.messages
    contents = [message.content for message in messages if message.role == "user"]
    if contents:
        content = contents[-1] or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)
    if parsed.prompt is not None:
        return parsed.prompt if isinstance(parsed.prompt, str) else "\n".join(parsed.prompt)
    if isinstance(parsed.input, str):
        return parsed.input
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
        """Return the completion as one JSON body."""
        content = {"message": {"role": "assistant", "content": self.text}} if self.is_chat else {"text": self.text}
        return self._body("chat.completion", [_choice(content, finish="stop")], self.usage)

    def events(self) -> Iterator[bytes]:
        """Yield the role (in a chat), the words, the finish reason, the usage if requested, and `[DONE]`."""
        if self.is_chat:
            yield self._event(_choice({"delta": {"role": "assistant", "content": ""}}))
        for piece in PIECE.finditer(self.text):
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
        return msgspec.json.encode(body if usage is None else body | {"usage": _usage_object(usage)})


def _usage_object(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


_Choice = dict[str, object]


def _choice(content: Mapping[str, object], finish: str | None = None) -> _Choice:
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish}
