"""Objects that an answer creates at its upstream, such as responses, and that later requests refer to by id."""

import re
from collections.abc import Iterator
from typing import cast

import msgspec

from signoff.core.binary import decode_binary
from signoff.core.endpoints import KNOWN, RESPONSES, parse_route

MAX_ID_LENGTH = 255
# Prefixes of ids that a body can contain (OpenAI's API reference: responses, conversations, vector stores, …).
_ID = rb"((?:resp|conv|vs|asst|thread|run|cntr|file|eval|ftjob)[_-][0-9A-Za-z_-]{1,250})"
_TEXT = re.compile(b'"' + _ID + b'"')
_FIELD = re.compile(b"\n" + _ID + rb"(?=\r?\n)")
_ESCAPED = re.compile(rb'"(?:[0-9A-Za-z_-]|\\u00[2-7][0-9A-Fa-f]){4,255}+"')


def creates_no_object(path: str) -> bool:
    """Return True if a request to `path` never creates an object at the upstream."""
    return path in KNOWN and path != RESPONSES


def created_object_id(path: str, body: bytes) -> str | None:
    """Return the id of the object that a POST to `path` created, from its answer `body`; None if there is none."""
    if creates_no_object(path) or not path.startswith("/v1/"):
        return None
    try:
        return _valid_id(msgspec.json.decode(body, type=_CreatedObject).id)
    except (ValueError, RecursionError):
        return None


def object_id_in_event(event: bytes) -> str | None:
    """Return the id of the response in an event of its stream; None if there is none."""
    try:
        return _valid_id(msgspec.json.decode(event, type=_Event).response.id)
    except (ValueError, RecursionError):
        return None


def _valid_id(object_id: str | None) -> str | None:
    """Return the id if a later request can refer to it."""
    return object_id if object_id and len(object_id) <= MAX_ID_LENGTH and object_id.isprintable() else None


def creates_object(path: str) -> bool:
    """Return True if `path` is for a new answer or object, False if it is for an object that exists."""
    if path in KNOWN:
        return True
    route = parse_route(path)
    return route is None or (route.method == "POST" and route.object_id is None)


def referenced_ids(body: bytes) -> set[str]:
    """Return the ids of upstream objects in the body of a request, in JSON with or without escapes, or in a form."""
    binary, ids = decode_binary(body), _ids_in_text(body)
    if binary is None:
        return ids
    content = binary.content.replace(b"\0", b"")  # some servers accept JSON in UTF-16
    return ids | _ids_in_text(content) | {match.decode() for match in _FIELD.findall(content)}


def _ids_in_text(text: bytes) -> set[str]:
    matches = _TEXT.findall(text)
    if b"\\u00" in text:
        matches += _TEXT.findall(msgspec.json.encode([msgspec.json.decode(each) for each in _ESCAPED.findall(text)]))
    return {match.decode() for match in matches} | set(_ids_in_members(text))


def _ids_in_members(text: bytes) -> Iterator[str]:
    """Yield the values of the members that always hold an id, in any format."""
    try:
        request = msgspec.json.decode(text, type=_References)
    except (ValueError, RecursionError):
        return
    for value in (request.previous_response_id, request.conversation):
        object_id = cast("dict[str, object]", value).get("id") if isinstance(value, dict) else value
        if object_id and isinstance(object_id, str):
            yield object_id


class _CreatedObject(msgspec.Struct, frozen=True):
    id: str | None = None


class _Event(msgspec.Struct):
    response: _CreatedObject = _CreatedObject()


class _References(msgspec.Struct):
    previous_response_id: object = None
    conversation: object = None
