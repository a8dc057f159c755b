"""The router of all HTTP requests: hot paths go straight to doors in plain ASGI, all others through Litestar."""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog
from litestar import Litestar, Response, Router
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.template import TemplateConfig

from signoff import __version__
from signoff.core.access import Caller
from signoff.core.api_paths import USER_ROUTES, parse_route
from signoff.doors import generate, jobs
from signoff.doors.access_log import public_path, serve_and_log
from signoff.doors.callers import caller_of
from signoff.doors.cors import allowed_origin, is_preflight, send_preflight, with_cors_headers
from signoff.doors.dependencies import AnyRequest, scope_of
from signoff.doors.errors import PROBLEM, detail, error_headers, problem, raw_error_headers
from signoff.doors.head import ACTING_PATHS, as_get, without_body
from signoff.doors.http import (
    BODY_LIMIT,
    MAX_DISCARDED_BYTES,
    RECEIVE,
    REQUEST_ID,
    ASGIApp,
    DoorSettings,
    Message,
    Receive,
    Scope,
    Send,
    check_nul_characters,
    header,
    read_body,
    send_bytes,
)
from signoff.doors.openapi.plugin import Document
from signoff.doors.tracing import serve_and_trace
from signoff.errors import BadRequest, Interrupted, MethodNotAllowed, MissingParameter, NotFound, SignoffError
from signoff.infra import logging
from signoff.infra.arrival import ARRIVED_AT
from signoff.work.admin.metrics import count_response
from signoff.work.services import Services
from signoff.work.tracing import tracer_of

MAX_REQUEST_ID_LENGTH = 128
# Maximum number of dashboard pages that are made at the same time: each can load a job of tens of megabytes. So a page
# does not wait for anything that a user can delay, such as the end of a job; it is looked at again instead.
MAX_PAGES = 8
# Sent to Litestar in place of OPTIONS: a method that no path has. Its error for such a method names all methods of the
# path, while its answer to OPTIONS names those of one handler.
ALL_METHODS = "OPTIONS-OF-ALL"
SLASHES = re.compile("/{2,}")
# Keys in a request's scope of what `_services`, `_door_settings` and `_caller` inject.
SERVICES, DOOR_SETTINGS, CALLER = "signoff.services", "signoff.door_settings", "signoff.caller"
ErrorPage = Callable[[AnyRequest, SignoffError], Response[Any] | None]
# The error of Litestar for a parameter that a request lacks.
MISSING = re.compile(r"Missing required \w+ parameter '([^']+)' for path ")
log = structlog.get_logger()


class DoorRouter:
    """An ASGI application that routes requests to the doors in `queue` and `hot`, and all others to `rest`.

    The keys of `queue` are paths of `POST` requests without a query, those of `hot` are prefixes of paths.
    """

    def __init__(
        self,
        hot: Mapping[str, ASGIApp],
        rest: ASGIApp,
        *,
        queue: Mapping[str, ASGIApp],
        services: Services,
        door_settings: DoorSettings,
    ) -> None:
        self._queue = queue
        self._hot = hot
        self._rest = rest
        self._services = services
        self._door_settings = door_settings
        self._pages = asyncio.Semaphore(MAX_PAGES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; its response has the header `x-request-id`."""
        ARRIVED_AT.set(time.perf_counter())
        request_id = _request_id(scope) or self._services.ids.new_id()
        scope[REQUEST_ID] = request_id
        logging.REQUEST_ID.set(request_id)
        send = _with_request_id(request_id, send, self._services)
        return await self._serve_request(scope, receive, send)

    @cached_property
    def _serve_request(self) -> ASGIApp:
        """The application with what the settings add to each request: a line in the log, and a span."""
        serve: ASGIApp = self._serve
        if self._door_settings.access_log:
            serve = partial(serve_and_log, serve)
        tracer = tracer_of(self._services)
        return serve if tracer is None else partial(serve_and_trace, tracer, serve)

    def _serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if "//" in scope["path"]:
            scope = _with_single_slashes(scope)
        if scope["method"] == "HEAD" and not scope["path"].lower().startswith(ACTING_PATHS):
            scope, send = as_get(scope), without_body(send)
        origins = self._door_settings.cors_origins
        if origins:
            origin = allowed_origin(scope, origins)
            send = with_cors_headers(origin, send)
            if origin is not None and is_preflight(scope):
                return send_preflight(scope, send)
        if scope["method"] == "POST" and not scope["query_string"] and (door := self._queue.get(scope["path"])):
            return door(scope, receive, send)
        for prefix, door in self._hot.items():
            if scope["path"].startswith(prefix):
                return door(scope, receive, send)
        return self._serve_rest(scope, receive, send)

    async def _serve_rest(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = {**scope, SERVICES: self._services, DOOR_SETTINGS: self._door_settings, RECEIVE: receive}
        if scope["method"] == "OPTIONS":
            scope["method"] = ALL_METHODS
        receive = _with_body_limit(scope, receive, self._door_settings.max_body_bytes)
        is_page = scope["method"] == "GET" and scope["path"].startswith("/dashboard/")
        try:
            async with contextlib.AsyncExitStack() as place:
                if is_page:
                    await place.enter_async_context(self._pages)
                await self._rest(scope, receive, _leaving(place, send) if is_page else send)
        except asyncio.CancelledError:
            if not self._services.runtime.shutdown.take_cancellation():
                raise
            error = Interrupted()
            with contextlib.suppress(RuntimeError):  # the response has begun
                body, headers = msgspec.json.encode(problem(error)), raw_error_headers(error)
                await send_bytes(send, error.status, body, PROBLEM.encode(), headers)


def _leaving(place: contextlib.AsyncExitStack, send: Send) -> Send:
    """Return a `send` that first gives up the place among the pages that are made: a client may read slowly."""

    async def leave_and_send(message: Message) -> None:
        await place.aclose()
        await send(message)

    return leave_and_send


def _with_single_slashes(scope: Scope) -> Scope:
    """Return `scope` without repeated slashes in its path, unless they are encoded: part of a name, such as a URL."""
    raw_path: bytes = scope.get("raw_path") or b""
    if b"%2f" in raw_path.lower():
        return scope
    return {**scope, "path": SLASHES.sub("/", scope["path"]), "raw_path": SLASHES.sub("/", raw_path.decode()).encode()}


def make_litestar_app(routers: Sequence[Router], templates: Path, error_page: ErrorPage) -> ASGIApp:
    """Return the Litestar application of `routers`, with an OpenAPI document at `/schema`.

    `error_page` may return a page in place of an error in the format of the API.
    Handlers get services and settings from the request's scope, where `DoorRouter` puts them.
    """

    def handle_error(request: AnyRequest, error: SignoffError) -> Response[Any]:
        return error_page(request, error) or _handle_error(request, error)

    def handle_http_error(request: AnyRequest, error: HTTPException) -> Response[Any]:
        if scope_of(request)["method"] == ALL_METHODS and error.status_code == MethodNotAllowed.status:
            return Response(None, status_code=204, headers={"allow": _allowed(request.url.path, error)})
        return handle_error(request, _convert(request, error))

    def handle_unexpected(request: AnyRequest, error: Exception) -> Response[Any]:
        log.error("request_failed", method=request.method, path=public_path(request.url.path), exc_info=error)
        return handle_error(request, SignoffError())

    app = Litestar(
        route_handlers=list(routers),
        dependencies={
            "services": Provide(_services, sync_to_thread=False),
            "door_settings": Provide(_door_settings, sync_to_thread=False),
            "caller": Provide(_caller, sync_to_thread=False),
        },
        guards=[_identify_caller],
        before_request=_check_nul_characters,
        exception_handlers={
            SignoffError: handle_error,
            HTTPException: handle_http_error,
            Exception: handle_unexpected,
        },
        openapi_config=OpenAPIConfig(
            title="Signoff",
            version=__version__,
            path="/schema",
            render_plugins=[Document()],
            use_handler_docstrings=True,
        ),
        template_config=TemplateConfig(directory=templates, engine=JinjaTemplateEngine),
        request_max_body_size=None,
        logging_config=None,
        debug=False,
    )
    return cast("ASGIApp", app)


# Not a plain function: Litestar would call it in a thread.
async def _check_nul_characters(request: AnyRequest) -> None:
    check_nul_characters(scope_of(request))


def _services(request: AnyRequest) -> Services:
    return scope_of(request)[SERVICES]


def _door_settings(request: AnyRequest) -> DoorSettings:
    return scope_of(request)[DOOR_SETTINGS]


async def _identify_caller(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Identify the caller for a handler that needs one, before Litestar reads the other parameters of the handler.

    Otherwise, callers without a token would learn which parameters are wrong.
    """
    if "caller" in handler.parsed_fn_signature.parameters:
        scope = cast("Scope", connection.scope)
        scope[CALLER] = await caller_of(scope[SERVICES], scope[DOOR_SETTINGS], scope)


def _caller(request: AnyRequest) -> Caller:
    return scope_of(request)[CALLER]


def _request_id(scope: Scope) -> str | None:
    """Return the id that the client gave the request; None if there is none, or one that cannot be used."""
    request_id = header(scope, b"x-request-id")
    if request_id is None:
        return None
    is_usable = request_id.isascii() and request_id.isprintable() and 0 < len(request_id) <= MAX_REQUEST_ID_LENGTH
    return request_id if is_usable else None


def _with_request_id(request_id: str, send: Send, services: Services) -> Send:
    """Return a `send` that adds the request's id to the response, and counts that by its status."""

    def send_with_request_id(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            count_response(services, message["status"])
            message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
        return send(message)

    return send_with_request_id


def _with_body_limit(scope: Scope, receive: Receive, limit: int) -> Receive:
    """Return a `receive` whose first message has the whole body; it raises TooLarge if the body exceeds `limit`.

    A handler for callers without a token can set BODY_LIMIT in the scope, beyond which nothing is read.
    """
    was_read = False

    async def receive_whole_body() -> Any:
        nonlocal was_read
        if was_read:
            return await receive()
        was_read = True
        if (lower_limit := scope.get(BODY_LIMIT)) is None:
            body = await read_body(scope, receive, limit, discarded_bytes=MAX_DISCARDED_BYTES)
        else:
            body = await read_body(scope, receive, min(limit, lower_limit), discarded_bytes=0)
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_whole_body


def _handle_error(request: AnyRequest, error: SignoffError) -> Response[Any]:
    """Return the error in the format of the API that the path belongs to."""
    headers, path = dict(error_headers(error)), request.url.path.rstrip("/")
    for paths, payload in ((jobs.PATHS, jobs.error_payload), (generate.PATHS, detail)):
        if path in paths:
            return Response(payload(error), status_code=error.status, headers=headers)
    return Response(msgspec.json.encode(problem(error)), status_code=error.status, headers=headers, media_type=PROBLEM)


def _convert(request: AnyRequest, error: HTTPException) -> SignoffError:
    """Return an error of Litestar itself as one of ours: unknown routes, wrong methods, invalid parameters."""
    match error.status_code:
        case 404:
            converted = NotFound(f"The path {request.url.path} does not exist.{_hint(request.url.path)}")
        case 405:
            converted = MethodNotAllowed.at(request.url.path, request.method, _allowed(request.url.path, error))
        case status:
            missing = MISSING.match(error.detail)
            converted = MissingParameter(missing[1]) if missing else BadRequest(_faults(error) or error.detail)
            converted.status = status
            converted.code = converted.code if status == BadRequest.status else "http_error"
    return converted


class _Fault(msgspec.Struct):
    """Fault of a parameter, as Litestar describes it."""

    message: str
    key: str = ""
    source: str = "request"


def _faults(error: HTTPException) -> str:
    """Return a sentence for each invalid parameter; empty if the error is about something else."""
    try:
        faults = msgspec.json.decode(msgspec.json.encode(getattr(error, "extra", None)), type=list[_Fault])
    except msgspec.ValidationError:
        return ""
    sentences = (f"`{fault.key}` ({fault.source}) is not valid: {fault.message.rstrip('.')}." for fault in faults)
    return " ".join(sentences)


def _hint(path: str) -> str:
    """Return a hint for a path of OpenAI's API without its version, as of a client whose base URL lacks it."""
    route = f"/v1{path.rstrip('/')}"
    parsed = parse_route(route)
    is_known = route == "/v1/models" or (parsed is not None and parsed.first_segment in USER_ROUTES)
    return f" Do you mean {route}? Then add /v1 to the base URL of the client." if is_known else ""


def _allowed(path: str, error: HTTPException) -> str:
    """Return the methods in the order of their names; a path whose GET changes nothing supports HEAD too."""
    methods = set((error.headers or {}).get("allow", "").replace(" ", "").split(","))
    has_head = "GET" in methods and not path.lower().startswith(ACTING_PATHS)
    return ", ".join(sorted(methods | ({"HEAD"} if has_head else set())))
