"""The native API of streams, for admins: `/api/streams`, and the AsyncAPI document of their topics."""

from typing import Any

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.params import FromPath

from signoff.doors.asyncapi import document
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import parse_json
from signoff.work.admin.streams import StreamStatus, add_stream, change_stream, get_stream, list_streams, remove_stream


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Members of a stream that may be left out."""

    max_handlers: int | msgspec.UnsetType = msgspec.UNSET
    """Maximum number of messages that a process handles at the same time."""
    backoff_max_seconds: float | msgspec.UnsetType = msgspec.UNSET
    """Maximum wait before the next attempt to connect, or to accept a message."""
    user: str | msgspec.UnsetType | None = msgspec.field(name="as", default=msgspec.UNSET)
    """E-mail address of the user whose limits and models apply; None for nobody in particular."""


class NewStream(StreamOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body that declares a stream."""

    name: str
    """Name of the stream; it cannot be changed."""
    url: str
    """URL of the message broker. It may contain a password, and is never shown again."""
    requests: str
    """Topic that requests come from."""
    responses: str
    """Topic that answers are published to."""


class StreamChange(StreamOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body that changes a stream; members that are left out keep their values. See `NewStream`."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    """The present name; any other is refused."""
    url: str | msgspec.UnsetType = msgspec.UNSET
    """URL of the message broker."""
    requests: str | msgspec.UnsetType = msgspec.UNSET
    """Topic that requests come from."""
    responses: str | msgspec.UnsetType = msgspec.UNSET
    """Topic that answers are published to."""


@get("/", summary="List streams")
async def get_streams(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Return all streams, each with the state of its listener in this process."""
    return {"data": [_stream_json(status) for status in await list_streams(services, caller)]}


@post("/", status_code=201, summary="Declare a stream")
async def post_stream(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller
) -> Response[dict[str, Any]]:
    """Declare a stream; all workers listen to it within a second."""
    status = await add_stream(services, caller, _parse_stream(await request.body(), NewStream))
    return Response(_stream_json(status), headers={"location": f"/api/streams/{status.stream.name}"})


@get("/{name:str}", summary="Get a stream")
async def show_stream(services: InjectedServices, caller: InjectedCaller, name: FromPath[str]) -> dict[str, Any]:
    """Return a stream with the state of its listener in this process."""
    return _stream_json(await get_stream(services, caller, name))


@patch("/{name:str}", summary="Change a stream")
async def patch_stream(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> dict[str, Any]:
    """Change the members of the body; all others keep their values."""
    return _stream_json(await change_stream(services, caller, name, _parse_stream(await request.body(), StreamChange)))


@delete("/{name:str}", status_code=204, summary="Remove a stream")
async def delete_stream(services: InjectedServices, caller: InjectedCaller, name: FromPath[str]) -> None:
    """Remove a stream; all workers stop listening to it within a second."""
    await remove_stream(services, caller, name)


@get("/schema/asyncapi.json", summary="Get the topics as an AsyncAPI 3 document")
async def get_asyncapi(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Return the AsyncAPI document, with one server and two channels for each stream."""
    return document([status.stream for status in await list_streams(services, caller)])


def _parse_stream(body: bytes, kind: type[NewStream] | type[StreamChange]) -> dict[str, Any]:
    """Return the members that the body has."""
    members = msgspec.structs.asdict(parse_json(body, kind, "stream"))
    return {name: value for name, value in members.items() if value is not msgspec.UNSET}


def _stream_json(status: StreamStatus) -> dict[str, Any]:
    stream, listening = status.stream, status.listening
    return {
        "name": stream.name,
        "transport": stream.transport,
        "host": stream.host,
        "requests": stream.requests,
        "responses": stream.responses,
        "max_handlers": stream.max_handlers,
        "backoff_max_seconds": stream.backoff_max_seconds,
        "as": stream.user,
        "declared": "settings" if status.is_declared else "at run time",
        "listening": listening is not None and listening.ok,
        "trouble": "This process does not listen." if listening is None else listening.error,
    }


router = Router(
    "/",
    route_handlers=[
        Router("/api/streams", route_handlers=[get_streams, post_stream, show_stream, patch_stream, delete_stream]),
        get_asyncapi,
    ],
    tags=["streams"],
)
