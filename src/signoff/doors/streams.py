"""The native door to streams: `/api/streams`, for admins, and the AsyncAPI document of their topics."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, Router, delete, get, patch, post
from litestar.params import FromPath

from signoff.doors.asyncapi import document
from signoff.doors.http import InjectedCaller, InjectedServices, decoded
from signoff.work.admin.streams import (
    StreamStatus,
    add_stream,
    change_stream,
    get_stream,
    list_streams,
    remove_stream,
)


class StreamDescription(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a stream is to be. `url` may hold a password, and is never shown again."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType = msgspec.UNSET
    requests: str | msgspec.UnsetType = msgspec.UNSET
    responses: str | msgspec.UnsetType = msgspec.UNSET
    max_handlers: int | msgspec.UnsetType = msgspec.UNSET
    backoff_max_seconds: float | msgspec.UnsetType = msgspec.UNSET
    user: str | msgspec.UnsetType | None = msgspec.field(name="as", default=msgspec.UNSET)


@get("/", summary="List streams")
async def listed(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Every stream, and how this process listens to it."""
    return {"data": [_as_seen(seen) for seen in await list_streams(services, caller)]}


@post("/", status_code=201, summary="Declare a stream")
async def create(
    request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller
) -> Response[dict[str, Any]]:
    """The stream, which every worker listens to within a second."""
    seen = await add_stream(services, caller, _decoded(await request.body()))
    return Response(_as_seen(seen), headers={"location": f"/api/streams/{seen.stream.name}"})


@get("/{name:str}", summary="Look at a stream")
async def one(services: InjectedServices, caller: InjectedCaller, name: FromPath[str]) -> dict[str, Any]:
    """The stream, and how this process listens to it."""
    return _as_seen(await get_stream(services, caller, name))


@patch("/{name:str}", summary="Change a stream")
async def changed(
    request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> dict[str, Any]:
    """The stream, with what was given; all else stays."""
    return _as_seen(await change_stream(services, caller, name, _decoded(await request.body())))


@delete("/{name:str}", status_code=204, summary="Forget a stream")
async def removed(services: InjectedServices, caller: InjectedCaller, name: FromPath[str]) -> None:
    """Nobody listens to it any more."""
    await remove_stream(services, caller, name)


@get("/schema/asyncapi.json", summary="The topics, as an AsyncAPI 3 document")
async def described(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """One server and two channels for each stream."""
    return document([seen.stream for seen in await list_streams(services, caller)])


def _decoded(body: bytes) -> dict[str, Any]:
    given = msgspec.structs.asdict(decoded(body, StreamDescription, "This is not a stream"))
    return {name: value for name, value in given.items() if value is not msgspec.UNSET}


def _as_seen(seen: StreamStatus) -> dict[str, Any]:
    stream, listening = seen.stream, seen.listening
    return {
        "name": stream.name,
        "transport": stream.transport,
        "host": stream.host,
        "requests": stream.requests,
        "responses": stream.responses,
        "max_handlers": stream.max_handlers,
        "backoff_max_seconds": stream.backoff_max_seconds,
        "as": stream.user,
        "declared": "settings" if seen.is_declared else "at run time",
        "listening": listening is not None and listening.ok,
        "trouble": "This process does not listen." if listening is None else listening.error,
    }


router = Router(
    "/",
    route_handlers=[Router("/api/streams", route_handlers=[listed, create, one, changed, removed]), described],
    tags=["streams"],
)
