"""Plain ASGI for the routes that queue a job, without the cost of a framework.

The same functions serve Litestar's handlers of these routes, which take requests with a query and describe the routes.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from litestar import Response

from signoff.core.access import Caller
from signoff.doors.callers import caller_of
from signoff.doors.dependencies import AnyRequest, scope_of
from signoff.doors.errors import raw_error_headers
from signoff.doors.http import (
    JSON,
    AsgiDoor,
    DoorSettings,
    Receive,
    Reply,
    Scope,
    Send,
    read_body,
    send_bytes,
    send_json,
)
from signoff.errors import SignoffError
from signoff.work.services import Services


class QueueRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a job."""

    services: Services
    """The dependencies."""
    door_settings: DoorSettings
    """The settings of doors."""
    caller: Caller
    """Caller who made the request."""
    scope: Scope
    """The ASGI scope, with the headers."""
    body: bytes
    """The body."""


Accept = Callable[[QueueRequest], Awaitable[Reply]]


class QueueDoor(AsgiDoor):
    """Door for one route, whose requests `accept` answers, and whose errors have the form of `error_payload`."""

    def __init__(
        self,
        services: Services,
        door_settings: DoorSettings,
        *,
        accept: Accept,
        error_payload: Callable[[SignoffError], Any],
        error_type: bytes = JSON,
    ) -> None:
        super().__init__(services, door_settings)
        self._accept = accept
        self._error_payload = error_payload
        self._error_type = error_type

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = await caller_of(self._services, self._door_settings, scope)
        body = await read_body(scope, receive, self._door_settings.max_body_bytes)
        request = QueueRequest(
            services=self._services, door_settings=self._door_settings, caller=caller, scope=scope, body=body
        )
        reply = await self._accept(request)
        headers = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
        await send_json(send, reply.payload, headers, status=reply.status)

    async def _send_error(self, scope: Scope, send: Send, error: SignoffError) -> None:
        payload = msgspec.json.encode(self._error_payload(error))
        await send_bytes(send, error.status, payload, self._error_type, raw_error_headers(error))


async def answer_in_litestar(
    request: AnyRequest, services: Services, door_settings: DoorSettings, caller: Caller, accept: Accept
) -> Response[Any]:
    """Return the response to a request that came through Litestar."""
    queue_request = QueueRequest(
        services=services,
        door_settings=door_settings,
        caller=caller,
        scope=scope_of(request),
        body=await request.body(),
    )
    reply = await accept(queue_request)
    return Response(reply.payload, status_code=reply.status, headers=dict(reply.headers))
