"""What an answer leaves behind at its upstream: objects that later requests name by their ids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

import msgspec

from signoff.core.binary import decode_binary
from signoff.core.endpoints import KNOWN, RESPONSES, parse_route

MAX_ID_LENGTH = 255
# OpenAI's prefixes of what can be named inside a body (API reference: responses, conversations, vector stores, …).
_ID = rb"((?:resp|conv|vs|asst|thread|run|cntr|file|eval|ftjob)[_-][0-9A-Za-z_-]{1,250})"
_TEXT = re.compile(b'"' + _ID + b'"')
_FIELD = re.compile(b"\n" + _ID + rb"(?=\r?\n)")
_ESCAPED = re.compile(rb'"(?:[0-9A-Za-z_-]|\\u00[2-7][0-9A-Fa-f]){4,255}+"')


def creates_no_object(path: str) -> bool:
    """Whether an answer to `path` is all that there is of it."""
    return path in KNOWN and path != RESPONSES


def created_object_id(path: str, body: bytes) -> str | None:
    """The id of what a POST to `path` made, going by its answer."""
    if creates_no_object(path) or not path.startswith("/v1/"):
        return None
    try:
        return _usable(msgspec.json.decode(body, type=_CreatedObject).id)
    except (ValueError, RecursionError):
        return None


def object_id_in_event(event: bytes) -> str | None:
    """The id of the response that an event of its stream names."""
    try:
        return _usable(msgspec.json.decode(event, type=_Event).response.id)
    except (ValueError, RecursionError):
        return None


def _usable(made: str | None) -> str | None:
    """The id, if it is one that could be asked for."""
    return made if made and len(made) <= MAX_ID_LENGTH and made.isprintable() else None


def creates_object(path: str) -> bool:
    """Whether `path` asks for something new, and not for what was made before."""
    if path in KNOWN:
        return True
    route = parse_route(path)
    return route is None or (route.method == "POST" and route.object_id is None)


def referenced_ids(body: bytes) -> set[str]:
    """The ids of such objects in a request's body, and in the parcel that it may be, however they are written there."""
    binary, named = decode_binary(body), _ids_in_text(body)
    if binary is None:
        return named
    content = binary.content.replace(b"\0", b"")  # JSON in UTF-16 is JSON to some servers
    return named | _ids_in_text(content) | {found.decode() for found in _FIELD.findall(content)}


def _ids_in_text(text: bytes) -> set[str]:
    found = _TEXT.findall(text)
    if b"\\u00" in text:
        found += _TEXT.findall(msgspec.json.encode([msgspec.json.decode(each) for each in _ESCAPED.findall(text)]))
    return {name.decode() for name in found} | set(_members_of(text))


def _members_of(text: bytes) -> Iterator[str]:
    """Those that are ids whatever they look like."""
    try:
        asked = msgspec.json.decode(text, type=_References)
    except (ValueError, RecursionError):
        return
    for named in (asked.previous_response_id, asked.conversation):
        name = cast("dict[str, object]", named).get("id") if isinstance(named, dict) else named
        if name and isinstance(name, str):
            yield name


class _CreatedObject(msgspec.Struct, frozen=True):
    id: str | None = None


class _Event(msgspec.Struct):
    response: _CreatedObject = _CreatedObject()


class _References(msgspec.Struct):
    previous_response_id: object = None
    conversation: object = None
