"""The OpenAI door: every endpoint that asks a model, and the list of models. Plain ASGI: the hot path."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import unquote_plus

import msgspec

from signoff.core.ask import Ask
from signoff.core.binary import BinaryBody, encode_binary, form_field
from signoff.core.cache import Sampling
from signoff.core.endpoints import CHAT, KNOWN, RESPONSES, STREAMED, format_route, parse_route
from signoff.core.model import Model
from signoff.core.pipelines.composed import LibraryItem
from signoff.doors.http import (
    DoorSettings,
    Receive,
    Scope,
    Send,
    cache_control_of,
    caller_of,
    decoded,
    header,
    in_dialect,
    leaving,
    read_body,
    send_json,
    text_header,
    wait_seconds_of,
)
from signoff.doors.openai.errors import send_error
from signoff.doors.openai.responses import call_headers, send_events, send_whole
from signoff.errors import NotFound, SignoffError
from signoff.work.call import Call, begin_call, call_chunks
from signoff.work.inference.resolve import list_targets, resolve_target
from signoff.work.services import Services

PREFIXES = ("/openai/v1/", "/v1/")
# What passes to an upstream beside a POST, and the known endpoints that have more than that.
PASSED = {"GET", "PUT", "PATCH", "DELETE"}
KEEPING = {CHAT, RESPONSES}
# What upstreams take beside JSON. Clients that are told no better call that a form, or bytes.
BINARY_ENDPOINTS = ("multipart/", "audio/", "image/", "video/")


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Peek(Sampling, frozen=True):
    """All that the door reads of a body; the rest passes untouched."""

    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class OpenAIDoor:
    """Answers under `/v1` and `/openai/v1`."""

    def __init__(self, services: Services, door_settings: DoorSettings) -> None:
        self._services = services
        self._door_settings = door_settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await in_dialect(self._route, scope, receive, send, send_error)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"].rstrip("/"), scope["method"]
        prefix = next(prefix for prefix in PREFIXES if (path + "/").startswith(prefix))
        rest = path[len(prefix) :]
        match method, rest.split("/"):
            case "POST", _ if f"/v1/{rest}" in KNOWN:
                await self._ask(scope, receive, send, f"/v1/{rest}")
            case "GET" | "HEAD", ["models"]:
                await self._models(scope, send)
            case "GET" | "HEAD", ["models", *_]:
                await self._model(scope, send, rest.removeprefix("models/"))
            case _ if _may_pass(method, f"/v1/{rest}"):
                named, query = _named(scope)
                await self._ask(scope, receive, send, format_route(method, f"/v1/{rest}", query), named)
            case _:
                raise NotFound(f"There is no {method} {path} here.")

    async def _ask(self, scope: Scope, receive: Receive, send: Send, path: str, named: str | None = None) -> None:
        services, door_settings = self._services, self._door_settings
        caller = await caller_of(services, door_settings, scope)
        body, peek = _read(scope, path, await read_body(scope, receive, door_settings.max_body_bytes))
        ask = Ask(
            door="openai",
            caller=caller,
            path=path,
            body=body,
            target=peek.model or named,
            stream=_streams(path, peek),
            lane="now",
            idempotency_key=header(scope, b"idempotency-key"),
            wait_seconds=wait_seconds_of(scope),
            cache_control=cache_control_of(scope),
            sampling=peek,
            is_retry=(header(scope, b"x-stainless-retry-count") or "0") != "0",
        )
        with_usage = bool(peek.stream_options and peek.stream_options.include_usage)
        async with leaving(services, receive):
            call = await begin_call(services, ask, with_usage=with_usage)
            try:
                await self._answer(call, send)
            except SignoffError as error:
                await send_error(send, error, call_headers(call))

    async def _answer(self, call: Call, send: Send) -> None:
        services = self._services
        async with contextlib.aclosing(call_chunks(services, call)) as chunks:
            if call.ask.stream:
                await send_events(
                    call, chunks, send, services.runtime.background, self._door_settings.keep_alive_seconds
                )
            else:
                await send_whole(call, chunks, send)

    async def _models(self, scope: Scope, send: Send) -> None:
        caller = await caller_of(self._services, self._door_settings, scope)
        listed = [_as_model(target) for target in await list_targets(self._services, caller)]
        await send_json(send, {"object": "list", "data": listed})

    async def _model(self, scope: Scope, send: Send, name: str) -> None:
        caller = await caller_of(self._services, self._door_settings, scope)
        target = await resolve_target(self._services, caller, name)
        await send_json(send, _as_model(target) | {"id": name})


def _read(scope: Scope, path: str, body: bytes) -> tuple[bytes, _Peek]:
    """The body as a job keeps it, and what the door must know of it. Raises BadRequest."""
    if path in KNOWN:
        return body, _peek(body)
    if not body:
        return b"null", _Peek()
    kind = header(scope, b"content-type") or ""
    if not kind.lower().startswith(BINARY_ENDPOINTS):
        return body, _peek(body)
    binary = BinaryBody(kind, body)
    streams = (form_field(binary, "stream") or "").lower() == "true"
    return encode_binary(binary), _Peek(model=form_field(binary, "model"), stream=streams)


def _streams(path: str, peek: _Peek) -> bool:
    if path in KNOWN:
        return bool(peek.stream) and path in STREAMED
    return bool(peek.stream) or "stream=true" in path.partition("?")[2].split("&")


def _may_pass(method: str, path: str) -> bool:
    """Whether an upstream may have it. Two of the known endpoints keep what they made; the others know one method."""
    return (method == "POST" or (method in PASSED and path not in KNOWN - KEEPING)) and parse_route(path) is not None


def _named(scope: Scope) -> tuple[str | None, str]:
    """The model that a header names, else the query; and the query without what was meant for this server."""
    query: str = scope["query_string"].decode("latin-1")
    named = text_header(scope, b"x-signoff-model")
    parts = query.split("&")
    told = [part for part in parts if part.startswith("model=")]
    if named is not None or not told:
        return named, query
    return unquote_plus(told[0].removeprefix("model=")), "&".join(part for part in parts if part not in told)


def _peek(body: bytes) -> _Peek:
    return decoded(body, _Peek, "The body cannot be asked")


def _as_model(target: Model | LibraryItem) -> dict[str, Any]:
    created = 0 if isinstance(target, Model) else target.created_at // 1_000_000
    return {"id": target.name, "object": "model", "created": created, "owned_by": "signoff"}
