"""OpenAI's API: the endpoints that ask a model, and the list of models. Plain ASGI, because it is the hot path."""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import unquote_plus

import msgspec

from signoff.core.access import Caller
from signoff.core.api_paths import KNOWN, RERANK, STREAMED, format_route, parse_route
from signoff.core.ask import Ask
from signoff.core.binary import BinaryBody, encode_binary
from signoff.core.cache import Sampling
from signoff.core.form import fields_of
from signoff.core.members import fold
from signoff.core.model import Model
from signoff.core.pipelines.composed import LibraryItem
from signoff.doors.callers import caller_of
from signoff.doors.http import (
    REQUEST_ID,
    AsgiDoor,
    ClientWatch,
    Header,
    Receive,
    Scope,
    Send,
    cache_control_of,
    header,
    is_retry,
    parse_json,
    read_body,
    send_json,
    text_header,
    wait_seconds_of,
)
from signoff.doors.openai.anthropic_errors import error_body, is_anthropic
from signoff.doors.openai.batches import serve_batches
from signoff.doors.openai.errors import send_error
from signoff.doors.openai.files import LocalRequest, serve_files
from signoff.doors.openai.message_batches import is_local, serve_message_batches
from signoff.doors.openai.responses import call_headers, send_body, send_events
from signoff.errors import BadRequest, MethodNotAllowed, NotFound, SignoffError
from signoff.work.call import begin_call, whole_answer
from signoff.work.inference.resolve import LibraryEntry, list_targets, resolve_target
from signoff.work.services import Services

AZURE_PREFIX = "/openai/"
PREFIXES = ("/openai/v1/", AZURE_PREFIX, "/v1/")
# The path that Cohere's clients call.
COHERE_RERANK = "/v2/rerank"
_KNOWN_PATHS = {f"{prefix}{path.removeprefix('/v1/')}": path for prefix in PREFIXES for path in KNOWN}
_KNOWN_PATHS[COHERE_RERANK] = RERANK
# Azure's paths name the model, which it calls a deployment (Azure OpenAI REST API reference, "Data plane inference").
_DEPLOYMENT = re.compile(
    r"/openai/deployments/(?P<model>.+?)/(?P<rest>(?:chat/)?completions|embeddings|(?:audio|images)/[a-z]+)/*"
)
# Methods besides POST that are passed on to an upstream.
PASSED_METHODS = {"GET", "PUT", "PATCH", "DELETE"}
NOT_PASSED_ON = "Uploads in parts are not supported; send the whole file to POST /v1/files."
# Media types of bodies that are not JSON. Any other type is read as JSON: clients without a better default, such as
# curl, declare JSON as a form or as bytes.
BINARY_TYPES = ("multipart/", "audio/", "image/", "video/")


# Serves the files or batches of this server.
ServeCollection = Callable[[Services, LocalRequest, Send], Awaitable[None]]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _RequestHead(Sampling, frozen=True):
    """The members of a body that the door reads; all others are passed on untouched."""

    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class OpenAIDoor(AsgiDoor):
    """The door at `/v1` and `/openai/v1`, and at the paths of Azure OpenAI below `/openai`."""

    async def _send_error(self, scope: Scope, send: Send, error: SignoffError, headers: Iterable[Header] = ()) -> None:
        if not is_anthropic(scope["path"]):
            return await send_error(send, error, headers)
        request_id = scope.get(REQUEST_ID)
        own = [] if request_id is None else [(b"request-id", request_id.encode())]
        return await send_error(send, error, [*headers, *own], body=error_body(error, request_id))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = await caller_of(self._services, self._door_settings, scope)
        if scope["method"] == "POST" and (known := _KNOWN_PATHS.get(scope["path"])) is not None:  # nearly all requests
            await self._ask(scope, receive, send, caller, known)
            return None
        deployment, path = _split_deployment(scope["path"])
        method = scope["method"]
        if "?" in path:
            raise BadRequest("The path must not contain an encoded `?` (`%3F`); begin the query with `?`.")
        rest = _below_prefix(path)
        if (serve := _local_collection(scope, rest.split("/"))) is not None:
            local = LocalRequest(self._door_settings, {**scope, "path": f"/v1/{rest}"}, receive, caller)
            return await serve(self._services, local, send)
        match method, rest.split("/"):
            case "POST", _ if f"/v1/{rest}" in KNOWN:
                await self._ask(scope, receive, send, caller, f"/v1/{rest}", deployment)
            case "GET", ["models"]:
                await self._models(send, caller)
            case "GET", ["models", *_]:
                await self._model(send, caller, rest.removeprefix("models/"))
            case _ if _is_passed_on(method, f"/v1/{rest}"):
                await self._ask(scope, receive, send, caller, f"/v1/{rest}", deployment)
            case _, [first, *_] if f"/v1/{rest}" in KNOWN or first == "models":
                raise MethodNotAllowed.at(path, method, _allowed(rest))
            case _, segments:
                text = f"The path {path} does not exist, or does not support the method {method}."
                raise NotFound(f"{text} {NOT_PASSED_ON}" if segments[0] == "uploads" else text)
        return None

    async def _ask(
        self, scope: Scope, receive: Receive, send: Send, caller: Caller, path: str, deployment: str | None = None
    ) -> None:
        """Ask `deployment`, else the model in the body, in `x-signoff-model` or in the query, else the default one."""
        services, door_settings, model = self._services, self._door_settings, None
        if not (scope["method"] == "POST" and path in KNOWN):
            model, query = _model_and_query(scope)
            path = format_route(scope["method"], path, query)
        body, request = _parse_body(scope, path, await read_body(scope, receive, door_settings.max_body_bytes))
        ask = Ask(
            door="openai",
            caller=caller,
            headers=scope["headers"],
            path=path,
            body=body,
            requires_members=True,
            target=deployment or request.model or model,
            stream=_is_stream(path, request),
            lane="now",
            idempotency_key=header(scope, b"idempotency-key"),
            wait_seconds=wait_seconds_of(scope),
            cache_control=cache_control_of(scope),
            sampling=request,
            is_retry=is_retry(scope),
        )
        with_usage = bool(request.stream_options and request.stream_options.include_usage)
        with ClientWatch(services, scope, receive):
            call = await begin_call(services, ask, with_usage=with_usage)
            try:
                if ask.stream:
                    await send_events(services, call, send, door_settings.keep_alive_seconds)
                else:
                    await send_body(call, await whole_answer(services, call), send)
            except SignoffError as error:
                await self._send_error(scope, send, error, call_headers(call))

    async def _models(self, send: Send, caller: Caller) -> None:
        models = [_model_json(target) for target in await list_targets(self._services, caller)]
        await send_json(send, {"object": "list", "data": models})

    async def _model(self, send: Send, caller: Caller, name: str) -> None:
        target = await resolve_target(self._services, caller, name)
        await send_json(send, _model_json(target) | {"id": name})


def _below_prefix(path: str) -> str:
    """Return the part of a path below the version of the API. Raises NotFound."""
    if path == COHERE_RERANK:
        return _below_prefix(RERANK)
    for prefix in PREFIXES:
        if (path + "/").startswith(prefix):
            return path[len(prefix) :]
    raise NotFound(f"The path {path} does not exist.")


def _split_deployment(path: str) -> tuple[str | None, str]:
    """Return the model in one of Azure's paths, and the same path without it; None for any other path."""
    match = _DEPLOYMENT.fullmatch(path)
    return (None, path.rstrip("/")) if match is None else (match["model"], AZURE_PREFIX + match["rest"])


def _local_collection(scope: Scope, segments: list[str]) -> ServeCollection | None:
    """Return the function that serves files or batches of this server; None for all other paths.

    Batches of messages are passed on if the request names a model, or a batch that is not of this server.
    """
    match segments:
        case ["files", *_]:
            return serve_files
        case ["batches", *_]:
            return serve_batches
        case ["messages", "batches", *rest] if is_local(rest) and (rest or _model_and_query(scope)[0] is None):
            return serve_message_batches
        case _:
            return None


def _parse_body(scope: Scope, path: str, body: bytes) -> tuple[bytes, _RequestHead]:
    """Return the body as a job stores it, and the members that the door reads. Raises BadBody, BadRequest."""
    if path in KNOWN:
        return body, _request_head(body)
    if not body:
        return b"null", _RequestHead()
    content_type = header(scope, b"content-type") or ""
    if not content_type.lower().startswith(BINARY_TYPES):
        return body, _request_head(body)
    binary = BinaryBody(content_type, body)
    fields = fields_of(binary)
    head = _RequestHead(model=fields.get("model"), stream=fields.get("stream", "").lower() == "true")
    return encode_binary(binary), head


def _is_stream(path: str, request: _RequestHead) -> bool:
    if path in KNOWN:
        return bool(request.stream) and path in STREAMED
    return bool(request.stream) or "stream=true" in path.partition("?")[2].split("&")


def _is_passed_on(method: str, path: str) -> bool:
    """Return True if a request may go to an upstream. The known endpoints take a POST only."""
    return (method == "POST" or (method in PASSED_METHODS and path not in KNOWN)) and parse_route(path) is not None


def _allowed(rest: str) -> str:
    """Return the methods of a known path below `/v1/`."""
    if rest.startswith("models"):
        return "GET, HEAD"
    return "POST"


def _model_and_query(scope: Scope) -> tuple[str | None, str]:
    """Return the model that `x-signoff-model` or else the query names, and the query without that parameter.

    At Azure's paths, the version of its API is left out too, because the upstream may have another API.

    Raises BadRequest if another parser could read another `model` or `stream` from the query.
    """
    query: str = scope["query_string"].decode("latin-1")
    is_azure = scope["path"].startswith(AZURE_PREFIX) and not scope["path"].startswith(PREFIXES[0])
    models, rest = list[str](), list[str]()
    read = {"model": 0, "stream": 0}
    for parameter in query.split("&"):
        name, _, value = (unquote_plus(part) for part in parameter.partition("="))
        if (folded := fold(name.strip())) in read:
            read[folded] += 1
            if name != folded or read[folded] > 1:
                raise BadRequest(
                    f"The query parameter `{folded}` must occur once, in exactly this spelling (got {name!r})."
                )
        if not (is_azure and name == "api-version"):
            (models if name == "model" else rest).append(value if name == "model" else parameter)
    return text_header(scope, b"x-signoff-model") or next(iter(models), None), "&".join(rest)


def _request_head(body: bytes) -> _RequestHead:
    return parse_json(body, _RequestHead, "request")


def _model_json(target: Model | LibraryItem | LibraryEntry) -> dict[str, Any]:
    created = 0 if isinstance(target, Model) else target.created_at // 1_000_000
    return {"id": target.name, "object": "model", "created": created, "owned_by": "signoff"}
