"""Administration of streams: list, add, change and remove them while servers run."""

from collections.abc import Mapping
from typing import Any

import msgspec

from signoff.core.access import Caller, check_admin, check_identified
from signoff.core.decode import check_required
from signoff.core.stream import ListenerStatus, Stream, public_address, stream_fault
from signoff.errors import BadRequest, Conflict, name_taken
from signoff.work.services import Services


class StreamStatus(msgspec.Struct, frozen=True):
    """A stream with the status of its listener."""

    stream: Stream
    """The stream."""
    is_declared: bool
    """True if the settings of this server declare the stream, so that it cannot be changed here."""
    listening: ListenerStatus | None
    """The status of the listener in this process; None if it does not listen."""


async def list_streams(services: Services, caller: Caller) -> list[StreamStatus]:
    """Return every stream, those of the settings first. Raises Forbidden."""
    check_admin(caller)
    return [_status_of(services, stream) for stream in await services.caches.streams.all()]


async def get_stream(services: Services, caller: Caller, name: str) -> StreamStatus:
    """Return the stream of this name. Raises Forbidden, NotFound."""
    check_admin(caller)
    return _status_of(services, await services.caches.streams.find(name))


async def add_stream(services: Services, caller: Caller, fields: Mapping[str, Any]) -> StreamStatus:
    """Add a stream, to which every worker listens within a second.

    `fields` are those of a `Stream`, with its `url` in place of `scheme`, `host` and `sealed`.
    Raises Unauthorized, Forbidden, MissingParameter, BadRequest, NameTaken.
    """
    check_identified(caller)
    check_admin(caller)
    check_required(fields, "name", "url", "requests", "responses")
    services.caches.streams.invalidate()
    if any(fields["name"] == stream.name for stream in await services.caches.streams.all()):
        raise name_taken(fields["name"])
    blank = Stream(name="", scheme="", host="", sealed=b"", requests="", responses="")
    return await _save(services, blank, fields, is_new=True)


async def change_stream(services: Services, caller: Caller, name: str, changes: Mapping[str, Any]) -> StreamStatus:
    """Change the given fields of a stream, as in `add_stream`.

    Raises Unauthorized, Forbidden, NotFound, BadRequest, Conflict.
    """
    stream = await _get_changeable(services, caller, name)
    if changes.get("name", name) != name:
        raise BadRequest(f"`name` must be {name!r}, as names cannot change (got {changes['name']!r}).")
    return await _save(services, stream, changes)


async def remove_stream(services: Services, caller: Caller, name: str) -> None:
    """Remove the stream. Listeners stop, and replies that were not sent yet fail after their last attempt.

    Raises Unauthorized, Forbidden, NotFound, Conflict.
    """
    await _get_changeable(services, caller, name)
    await services.store.streams.drop(name)
    services.caches.streams.invalidate()


async def _get_changeable(services: Services, caller: Caller, name: str) -> Stream:
    check_identified(caller)
    check_admin(caller)
    services.caches.streams.invalidate()
    stream = await services.caches.streams.find(name)
    if services.caches.streams.is_declared(name):
        raise Conflict(f"The stream {name!r} is declared in the settings of this server; change it there.")
    return stream


async def _save(services: Services, stream: Stream, fields: Mapping[str, Any], *, is_new: bool = False) -> StreamStatus:
    changes = dict(fields)
    url: str | None = changes.pop("url", None)
    if url is not None:
        changes["scheme"], changes["host"] = public_address(url)
        changes["sealed"] = services.adapters.vault.seal(url)
    stream = msgspec.structs.replace(stream, **changes)
    if (fault := stream_fault(stream)) is not None:
        raise BadRequest(fault)
    if stream.user is not None and await services.caches.callers.by_email(stream.user) is None:
        raise BadRequest(f"`as` must be the e-mail address of an active user (got {stream.user!r}).")
    await services.store.streams.put(stream, is_new=is_new)
    services.caches.streams.invalidate()
    return _status_of(services, stream)


def _status_of(services: Services, stream: Stream) -> StreamStatus:
    return StreamStatus(
        stream, services.caches.streams.is_declared(stream.name), services.caches.streams.statuses.get(stream.name)
    )
