"""The front: sends each request to its door. The hot path goes straight to plain ASGI, all else through Litestar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog
from litestar import Litestar, Request, Response, Router
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.template import TemplateConfig

from signoff import __version__
from signoff.core.access import Caller
from signoff.doors import generate, jobs
from signoff.doors.cors import allowed_origin, is_preflight, readable, send_preflight
from signoff.doors.http import (
    ASGIApp,
    DoorSettings,
    InjectedServices,
    InjectedSettings,
    Message,
    Receive,
    Scope,
    Send,
    caller_of,
    check_address,
    error_headers,
    header,
    problem,
    read_body,
    scope_of,
)
from signoff.errors import NotFound, SignoffError
from signoff.work.services import Services

MAX_REQUEST_ID = 128
PROBLEM = "application/problem+json"
# Where a request's scope tells its handler whose it is.
SERVICES, DOOR_SETTINGS = "signoff.services", "signoff.door_settings"
log = structlog.get_logger()


class DoorRouter:
    """One ASGI application out of the doors: `hot` by the beginning of the path, else `rest`."""

    def __init__(
        self, hot: Mapping[str, ASGIApp], rest: ASGIApp, *, services: Services, door_settings: DoorSettings
    ) -> None:
        self._hot = hot
        self._rest = rest
        self._services = services
        self._door_settings = door_settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; its answer carries `x-request-id`."""
        send = _with_request_id(scope, send, self._services.ids.new_id)
        if (
            self._door_settings.cors_origins
            and (origin := allowed_origin(scope, self._door_settings.cors_origins)) is not None
        ):
            send = readable(origin, send)
            if is_preflight(scope):
                return await send_preflight(scope, send)
        for prefix, door in self._hot.items():
            if scope["path"].startswith(prefix):
                return await door(scope, receive, send)
        told = {**scope, SERVICES: self._services, DOOR_SETTINGS: self._door_settings}
        return await self._rest(told, _bounded(scope, receive, self._door_settings.max_body_bytes), send)


def make_litestar_app(routers: Sequence[Router], templates: Path) -> ASGIApp:
    """Everything off the hot path, with an OpenAPI document at `/schema`; each request brings its desk."""
    rest = Litestar(
        route_handlers=list(routers),
        dependencies={
            "services": Provide(_services, sync_to_thread=False),
            "door_settings": Provide(_door_settings, sync_to_thread=False),
            "caller": Provide(_caller),
        },
        before_request=_check_address,
        exception_handlers={SignoffError: _problem, HTTPException: _http_problem, Exception: _fault},
        openapi_config=OpenAPIConfig(
            title="Signoff", version=__version__, path="/schema", render_plugins=[JsonRenderPlugin()]
        ),
        template_config=TemplateConfig(directory=templates, engine=JinjaTemplateEngine),
        request_max_body_size=None,
        logging_config=None,
        debug=False,
    )
    return cast("ASGIApp", rest)


def _check_address(request: Request[Any, Any, Any]) -> None:
    check_address(scope_of(request))


def _services(request: Request[Any, Any, Any]) -> Services:
    return scope_of(request)[SERVICES]


def _door_settings(request: Request[Any, Any, Any]) -> DoorSettings:
    return scope_of(request)[DOOR_SETTINGS]


async def _caller(
    request: Request[Any, Any, Any], services: InjectedServices, door_settings: InjectedSettings
) -> Caller:
    return await caller_of(services, door_settings, scope_of(request))


def _with_request_id(scope: Scope, send: Send, new_id: Callable[[], str]) -> Send:
    given = header(scope, b"x-request-id")
    usable = given is not None and given.isascii() and given.isprintable() and len(given) <= MAX_REQUEST_ID
    request_id = (given if given and usable else new_id()).encode()

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
        await send(message)

    return sending


def _bounded(scope: Scope, receive: Receive, limit: int) -> Receive:
    """The whole body at the first call, if it is not too large; what comes after it as it comes."""
    was_read = False

    async def receiving() -> Any:
        nonlocal was_read
        if was_read:
            return await receive()
        was_read = True
        return {"type": "http.request", "body": await read_body(scope, receive, limit), "more_body": False}

    return receiving


def _problem(request: Request[Any, Any, Any], error: SignoffError) -> Response[Any]:
    for door in (jobs, generate):
        if request.url.path.rstrip("/") in door.PATHS:
            return door.failed(request, error)
    headers = dict(error_headers(error))
    return Response(msgspec.json.encode(problem(error)), status_code=error.status, headers=headers, media_type=PROBLEM)


def _http_problem(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """Litestar's own refusals: unknown routes, wrong methods, parameters that do not fit."""
    told = NotFound(error.detail if error.status_code != NotFound.status else f"There is no {request.url.path} here.")
    told.status = error.status_code
    told.code = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    extra = getattr(error, "extra", None)
    if extra:
        told.message = f"{told.message} {msgspec.json.encode(extra).decode()}"
    return _problem(request, told)


def _fault(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.error("a request failed unexpectedly", path=request.url.path, exc_info=error)
    return _problem(request, SignoffError("The server made a mistake; its log says more."))
