"""Streams: which there are, how this process listens to them, and declaring one while everything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.stream import Listening, Stream, flaw_of, seen_of
from signoff.errors import BadRequest, Conflict, NotFound
from signoff.work.services import Desk


class SeenStream(msgspec.Struct, frozen=True):
    """A stream, whether the settings declare it, and how this process listens to it; None if it does not."""

    stream: Stream
    is_declared: bool
    listening: Listening | None


async def look_at_streams(desk: Desk, caller: Caller) -> list[SeenStream]:
    """Every stream, those of the settings first. Raises Forbidden."""
    check_admin(caller)
    return [_seen(desk, stream) for stream in await desk.streams.all()]


async def look_at_stream(desk: Desk, caller: Caller, name: str) -> SeenStream:
    """The stream of that name. Raises Forbidden, NotFound."""
    check_admin(caller)
    return _seen(desk, await desk.streams.find(name))


async def add_stream(desk: Desk, caller: Caller, told: Mapping[str, Any]) -> SeenStream:
    """A new stream, which every worker listens to within a second. Raises Forbidden, BadRequest, Conflict."""
    check_admin(caller)
    if not {"name", "url", "requests", "responses"} <= told.keys():
        raise BadRequest("A stream has a name, a url, and two topics: requests, responses.")
    if any(told["name"] == known.name for known in await _fresh(desk)):
        raise Conflict(f"There is a stream {told['name']!r} already.")
    blank = Stream(name="", scheme="", host="", sealed=b"", requests="", responses="")
    return await _kept(desk, blank, told)


async def change_stream(desk: Desk, caller: Caller, name: str, told: Mapping[str, Any]) -> SeenStream:
    """The stream, with what is told; all else stays. Raises Forbidden, NotFound, BadRequest, Conflict."""
    known = await _changeable(desk, caller, name)
    if told.get("name", name) != name:
        raise BadRequest("A stream keeps its name: declare another one, and remove this one.")
    return await _kept(desk, known, told)


async def remove_stream(desk: Desk, caller: Caller, name: str) -> None:
    """Nobody listens any more; answers that are still to be sent are given up in time. Raises as above."""
    await _changeable(desk, caller, name)
    await desk.store.streams.drop(name)
    desk.streams.forget()


async def _changeable(desk: Desk, caller: Caller, name: str) -> Stream:
    check_admin(caller)
    found = next((stream for stream in await _fresh(desk) if stream.name == name), None)
    if found is None:
        raise NotFound(f"There is no stream {name!r}.")
    if desk.streams.is_declared(name):
        raise Conflict(f"The stream {name!r} is declared in the settings of this server: it is changed there.")
    return found


async def _kept(desk: Desk, known: Stream, told: Mapping[str, Any]) -> SeenStream:
    changes = dict(told)
    url: str | None = changes.pop("url", None)
    if url is not None:
        changes["scheme"], changes["host"] = seen_of(url)
        changes["sealed"] = desk.vault.seal(url)
    stream = msgspec.structs.replace(known, **changes)
    if (flaw := flaw_of(stream)) is not None:
        raise BadRequest(flaw)
    if stream.user is not None and await desk.callers.named(stream.user) is None:
        raise BadRequest(f"as names {stream.user!r}, who is no active user.")
    await desk.store.streams.put(stream)
    desk.streams.forget()
    return _seen(desk, stream)


async def _fresh(desk: Desk) -> list[Stream]:
    desk.streams.forget()
    return list(await desk.streams.all())


def _seen(desk: Desk, stream: Stream) -> SeenStream:
    return SeenStream(stream, desk.streams.is_declared(stream.name), desk.streams.listening.get(stream.name))
