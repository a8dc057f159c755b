"""The OpenAI door: chat completions, plain and streamed, and the list of models. Plain ASGI: the hot path."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
import structlog

from signoff.core import sse
from signoff.core.answer import Chunk
from signoff.core.ask import CHAT, Ask
from signoff.core.target import Model
from signoff.doors.http import (
    Header,
    Knobs,
    Receive,
    Scope,
    Send,
    caller_of,
    error_headers,
    header,
    leaving,
    patience_of,
    read_body,
    send_bytes,
)
from signoff.errors import BadRequest, ModelAnswered, NotFound, SignoffError
from signoff.work.call import Call, begin, chunks_of
from signoff.work.desk import Desk
from signoff.work.models import all_models, model_called

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
log = structlog.get_logger()
PREFIXES = ("/openai/v1/", "/v1/")


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Peek(msgspec.Struct):
    """All that the door reads of a body; the rest passes untouched."""

    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class OpenAIDoor:
    """Answers under `/v1` and `/openai/v1`."""

    def __init__(self, desk: Desk, knobs: Knobs) -> None:
        self._desk = desk
        self._knobs = knobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        try:
            await self._route(scope, receive, send)
        except SignoffError as error:
            await send_error(send, error)
        except Exception:  # a fault of ours is told in this door's dialect too
            log.exception("a request failed unexpectedly", path=scope["path"])
            await send_error(send, SignoffError("The server made a mistake; its log says more."))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"].rstrip("/"), scope["method"]
        prefix = next(prefix for prefix in PREFIXES if (path + "/").startswith(prefix))
        match method, path[len(prefix) :]:
            case "POST", "chat/completions":
                await self._chat(scope, receive, send)
            case "GET", "models":
                await self._models(scope, send)
            case "GET", rest if rest.startswith("models/"):
                await self._model(scope, send, rest.removeprefix("models/"))
            case _:
                raise NotFound(f"There is no {method} {path} here.")

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        desk, knobs = self._desk, self._knobs
        caller = await caller_of(desk, knobs, scope)
        body = await read_body(scope, receive, knobs.max_body_bytes)
        peek = _peek(body)
        ask = Ask(
            door="openai",
            caller=caller,
            path=CHAT,
            body=body,
            target=peek.model,
            stream=bool(peek.stream),
            lane="now",
            idempotency_key=header(scope, b"idempotency-key"),
            wait_seconds=patience_of(scope),
            is_retry=(header(scope, b"x-stainless-retry-count") or "0") != "0",
        )
        with_usage = bool(peek.stream_options and peek.stream_options.include_usage)
        async with leaving(desk, receive):
            call = await begin(desk, ask, with_usage=with_usage)
            async with contextlib.aclosing(chunks_of(desk, call)) as chunks:
                if ask.stream:
                    await _stream(call, chunks, send)
                else:
                    await _plain(call, chunks, send)

    async def _models(self, scope: Scope, send: Send) -> None:
        await caller_of(self._desk, self._knobs, scope)
        listed = [_as_model(model) for model in await all_models(self._desk)]
        await send_bytes(send, 200, msgspec.json.encode({"object": "list", "data": listed}), JSON)

    async def _model(self, scope: Scope, send: Send, name: str) -> None:
        await caller_of(self._desk, self._knobs, scope)
        model = await model_called(self._desk, name)
        await send_bytes(send, 200, msgspec.json.encode(_as_model(model) | {"id": name}), JSON)


async def _plain(call: Call, chunks: AsyncIterator[Chunk], send: Send) -> None:
    body = b"".join([chunk.raw async for chunk in chunks])
    await send_bytes(send, 200, body, JSON, _headers(call))


async def _stream(call: Call, chunks: AsyncIterator[Chunk], send: Send) -> None:
    """Events as they come. An error before the first one has its status; one after it is an event of its own."""
    began = False
    try:
        async for chunk in chunks:
            if not began:
                began = True
                headers = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), *_headers(call)]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": _event(chunk), "more_body": True})
    except SignoffError as error:
        if not began:
            raise
        data = sse.event(msgspec.json.encode(error_body(error)))
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(chunk: Chunk) -> bytes:
    """A model that ignores `stream` answers whole; its caller still reads a stream."""
    return chunk.raw if chunk.event else sse.event(b"".join(chunk.raw.splitlines())) + sse.DONE


async def send_error(send: Send, error: SignoffError) -> None:
    """An error in OpenAI's dialect; a model's own error passes as it came."""
    body = error.body if isinstance(error, ModelAnswered) and _is_openai_error(error.body) else None
    headers = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    if isinstance(error, ModelAnswered) and error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(round(error.retry_after_seconds)).encode()))
    await send_bytes(send, error.status, body or msgspec.json.encode(error_body(error)), JSON, headers)


def error_body(error: SignoffError) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`; the job's id beside them where there is one."""
    told = {"message": error.message, "type": error.kind, "param": None, "code": error.code}
    return {"error": told if error.job_id is None else told | {"job_id": error.job_id}}


def _is_openai_error(body: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(body, type=dict[str, Any]).get("error"), dict)
    except (ValueError, RecursionError):
        return False


def _peek(body: bytes) -> _Peek:
    try:
        return msgspec.json.decode(body, type=_Peek)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not a chat request: {error}") from None


def _headers(call: Call) -> Iterable[Header]:
    job = call.flight.job
    return ((b"x-signoff-job", job.id.encode()), (b"x-signoff-model", job.model.encode()))


def _as_model(model: Model) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "signoff"}
