"""Streams: which there are, how this process listens to them, and declaring one while everything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.stream import ListenerStatus, Stream, public_address, stream_fault
from signoff.errors import BadRequest, Conflict, NotFound
from signoff.work.services import Services


class StreamStatus(msgspec.Struct, frozen=True):
    """A stream, whether the settings declare it, and how this process listens to it; None if it does not."""

    stream: Stream
    is_declared: bool
    listening: ListenerStatus | None


async def list_streams(services: Services, caller: Caller) -> list[StreamStatus]:
    """Every stream, those of the settings first. Raises Forbidden."""
    check_admin(caller)
    return [_seen(services, stream) for stream in await services.caches.streams.all()]


async def get_stream(services: Services, caller: Caller, name: str) -> StreamStatus:
    """The stream of that name. Raises Forbidden, NotFound."""
    check_admin(caller)
    return _seen(services, await services.caches.streams.find(name))


async def add_stream(services: Services, caller: Caller, told: Mapping[str, Any]) -> StreamStatus:
    """A new stream, which every worker listens to within a second. Raises Forbidden, BadRequest, Conflict."""
    check_admin(caller)
    if not {"name", "url", "requests", "responses"} <= told.keys():
        raise BadRequest("A stream has a name, a url, and two topics: requests, responses.")
    if any(told["name"] == known.name for known in await _fresh(services)):
        raise Conflict(f"There is a stream {told['name']!r} already.")
    blank = Stream(name="", scheme="", host="", sealed=b"", requests="", responses="")
    return await _kept(services, blank, told)


async def change_stream(services: Services, caller: Caller, name: str, told: Mapping[str, Any]) -> StreamStatus:
    """The stream, with what is told; all else stays. Raises Forbidden, NotFound, BadRequest, Conflict."""
    known = await _changeable(services, caller, name)
    if told.get("name", name) != name:
        raise BadRequest("A stream keeps its name: declare another one, and remove this one.")
    return await _kept(services, known, told)


async def remove_stream(services: Services, caller: Caller, name: str) -> None:
    """Nobody listens any more; answers that are still to be sent are given up in time. Raises as above."""
    await _changeable(services, caller, name)
    await services.store.streams.drop(name)
    services.caches.streams.invalidate()


async def _changeable(services: Services, caller: Caller, name: str) -> Stream:
    check_admin(caller)
    found = next((stream for stream in await _fresh(services) if stream.name == name), None)
    if found is None:
        raise NotFound(f"There is no stream {name!r}.")
    if services.caches.streams.is_declared(name):
        raise Conflict(f"The stream {name!r} is declared in the settings of this server: it is changed there.")
    return found


async def _kept(services: Services, known: Stream, told: Mapping[str, Any]) -> StreamStatus:
    changes = dict(told)
    url: str | None = changes.pop("url", None)
    if url is not None:
        changes["scheme"], changes["host"] = public_address(url)
        changes["sealed"] = services.adapters.vault.seal(url)
    stream = msgspec.structs.replace(known, **changes)
    if (flaw := stream_fault(stream)) is not None:
        raise BadRequest(flaw)
    if stream.user is not None and await services.caches.callers.by_email(stream.user) is None:
        raise BadRequest(f"as names {stream.user!r}, who is no active user.")
    await services.store.streams.put(stream)
    services.caches.streams.invalidate()
    return _seen(services, stream)


async def _fresh(services: Services) -> list[Stream]:
    services.caches.streams.invalidate()
    return list(await services.caches.streams.all())


def _seen(services: Services, stream: Stream) -> StreamStatus:
    return StreamStatus(
        stream, services.caches.streams.is_declared(stream.name), services.caches.streams.statuses.get(stream.name)
    )
