"""What an answer leaves behind at its upstream: objects that later requests name by their ids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

import msgspec

from signoff.core.binary import unwrapped
from signoff.core.endpoints import KNOWN, RESPONSES, route_of

LONGEST_ID = 255
# OpenAI's prefixes of what can be named inside a body (API reference: responses, conversations, vector stores, …).
_ID = rb"((?:resp|conv|vs|asst|thread|run|cntr|file|eval|ftjob)[_-][0-9A-Za-z_-]{1,250})"
_TEXT = re.compile(b'"' + _ID + b'"')
_FIELD = re.compile(b"\n" + _ID + rb"(?=\r?\n)")
_ESCAPED = re.compile(rb'"(?:[0-9A-Za-z_-]|\\u00[2-7][0-9A-Fa-f]){4,255}+"')


def leaves_nothing(path: str) -> bool:
    """Whether an answer to `path` is all that there is of it."""
    return path in KNOWN and path != RESPONSES


def made_by(path: str, body: bytes) -> str | None:
    """The id of what a POST to `path` made, going by its answer."""
    if leaves_nothing(path) or not path.startswith("/v1/"):
        return None
    try:
        return _usable(msgspec.json.decode(body, type=_Made).id)
    except (ValueError, RecursionError):
        return None


def made_in(event: bytes) -> str | None:
    """The id of the response that an event of its stream names."""
    try:
        return _usable(msgspec.json.decode(event, type=_Event).response.id)
    except (ValueError, RecursionError):
        return None


def _usable(made: str | None) -> str | None:
    """The id, if it is one that could be asked for."""
    return made if made and len(made) <= LONGEST_ID and made.isprintable() else None


def is_new(path: str) -> bool:
    """Whether `path` asks for something new, and not for what was made before."""
    if path in KNOWN:
        return True
    route = route_of(path)
    return route is None or (route.method == "POST" and route.names is None)


def named_in(body: bytes) -> set[str]:
    """The ids of such objects in a request's body, and in the parcel that it may be, however they are written there."""
    parcel, named = unwrapped(body), _named_in_text(body)
    if parcel is None:
        return named
    content = parcel.content.replace(b"\0", b"")  # JSON in UTF-16 is JSON to some servers
    return named | _named_in_text(content) | {found.decode() for found in _FIELD.findall(content)}


def _named_in_text(text: bytes) -> set[str]:
    found = _TEXT.findall(text)
    if b"\\u00" in text:
        found += _TEXT.findall(msgspec.json.encode([msgspec.json.decode(each) for each in _ESCAPED.findall(text)]))
    return {name.decode() for name in found} | set(_members_of(text))


def _members_of(text: bytes) -> Iterator[str]:
    """Those that are ids whatever they look like."""
    try:
        asked = msgspec.json.decode(text, type=_Asked)
    except (ValueError, RecursionError):
        return
    for named in (asked.previous_response_id, asked.conversation):
        name = cast("dict[str, object]", named).get("id") if isinstance(named, dict) else named
        if name and isinstance(name, str):
            yield name


class _Made(msgspec.Struct, frozen=True):
    id: str | None = None


class _Event(msgspec.Struct):
    response: _Made = _Made()


class _Asked(msgspec.Struct):
    previous_response_id: object = None
    conversation: object = None
