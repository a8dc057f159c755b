"""Objects that an answer creates at its upstream, such as responses, and that later requests refer to by id."""

import contextlib
import re
from collections.abc import Iterator
from typing import cast
from urllib.parse import parse_qsl

import msgspec

from signoff.core.api_paths import COUNT_TOKENS, KNOWN, MESSAGES, RESPONSES, Route, parse_route
from signoff.core.binary import decode_binary

MAX_ID_LENGTH = 255
MAX_IDS_IN_ANSWER = 256
# Prefixes of ids that a body can contain (OpenAI's API reference: responses, conversations, vector stores, …).
_LIVING = "conv|vs|asst|thread|run|cntr|file|eval|ftjob|video|batch|upload|skill"
_FINAL = "resp|msg|rs|fc|fco|ws|ig|ci|fs|mcp|cfile|call"
# Without such a prefix, only a text that is so long is taken for an id.
_ID = rf"((?:{_LIVING}|{_FINAL})[_-][0-9A-Za-z_-]{{1,250}}|[0-9A-Za-z_-]{{20,{MAX_ID_LENGTH}}})".encode()
_TEXT = re.compile(b'"' + _ID + rb'"(?!\s*:)')  # no name of a member, such as `file_id`
_FIELD = re.compile(b"\n" + _ID + rb"(?=\r?\n)")
_SEGMENT = re.compile(_ID.decode())
_ESCAPED = re.compile(rb'"(?:[0-9A-Za-z_-]|\\u00[2-7][0-9A-Fa-f]){4,255}+"')
# Members, and parameters of queries, that refer to objects (OpenAI's API reference) by ids of any length and form.
_REFERRING = (
    "assistant_id",
    "batch_id",
    "container",
    "container_id",
    "conversation",
    "conversation_id",
    "file_id",
    "file_ids",
    "input_file_id",
    "previous_response_id",
    "response_id",
    "run_id",
    "skill_id",
    "thread_id",
    "training_file",
    "upload_id",
    "validation_file",
    "vector_store_id",
    "vector_store_ids",
    "video_id",
)
_MEMBER = re.compile(rf'"(?:{"|".join(_REFERRING)})"\s*:'.encode())
_ESCAPED_MEMBER = re.compile(rb'("(?:[a-z_]|\\u00[2-7][0-9A-Fa-f]){6,120}+")\s*:')
_STRING = rf'"(?:[^"\\]|\\.){{1,{MAX_ID_LENGTH}}}+"'
_STRINGS = re.compile(_STRING.encode())
# A text, the first member `id` of an object, or a list of texts.
_REFERENCE = re.compile(rf'\s*(?:(?:\{{[^{{}}]*?"id"\s*:\s*)?({_STRING})|\[([^\]]*)\])'.encode())
# Ids of the parts of an answer that later requests can refer to: items of a response, containers and their files.
_IN_ANSWER = re.compile(
    rb'"id"\s*:\s*"([0-9A-Za-z_-]{20,255})"|"(?:container_id|file_id)"\s*:\s*"([0-9A-Za-z_-]{1,255})"'
)
_NEVER_CHANGES = re.compile(rf"(?:{_FINAL})[_-]")


def is_stateless(path: str) -> bool:
    """Return True if a request to `path` neither creates an object at the upstream nor refers to one."""
    return path in KNOWN and path not in {RESPONSES, MESSAGES, COUNT_TOKENS}


def created_object_id(path: str, body: bytes) -> str | None:
    """Return the id of the object that a POST to `path` created, from its answer `body`; None if there is none."""
    if is_stateless(path) or not path.startswith("/v1/"):
        return None
    try:
        created = msgspec.json.decode(body, type=_CreatedObject)
    except (ValueError, RecursionError):
        return None
    return None if path == MESSAGES and created.container is None else _valid_id(created.id)


def object_id_in_event(event: bytes) -> str | None:
    """Return the id of the response in an event of its stream; None if there is none."""
    try:
        return _valid_id(msgspec.json.decode(event, type=_Event).response.id)
    except (ValueError, RecursionError):
        return None


def _valid_id(object_id: str | None) -> str | None:
    """Return the id if a later request can refer to it."""
    return object_id if object_id and len(object_id) <= MAX_ID_LENGTH and object_id.isprintable() else None


def is_creation(path: str) -> bool:
    """Return True if a request to `path` asks for a new answer or object, False if it is about an existing object."""
    if path in KNOWN:
        return True
    route = parse_route(path)
    return route is None or (route.method == "POST" and route.object_id is None)


def ids_in_answer(answer: bytes, request: bytes) -> set[str]:
    """Return the ids of the parts of an answer, without those that the request contains; at most MAX_IDS_IN_ANSWER."""
    ids = set[str]()
    for match in _IN_ANSWER.finditer(answer):
        object_id = match[1] or match[2]
        if object_id not in request:
            ids.add(object_id.decode())
        if len(ids) == MAX_IDS_IN_ANSWER:
            break
    return ids


def can_change(object_id: str) -> bool:
    """Return True if a later request may add to the object, as to a conversation; a response never changes."""
    return _NEVER_CHANGES.match(object_id) is None


def ids_in_route(route: Route) -> set[str]:
    """Return the ids of upstream objects in the path and the query of a request."""
    segments = route.path.split("/")[3:]
    parameters = parse_qsl(route.query or "")
    ids = {text for text in (*segments, *(value for _, value in parameters)) if _SEGMENT.fullmatch(text)}
    ids |= {value for name, value in parameters if name.removesuffix("[]") in _REFERRING}
    if route.object_id is None:
        return ids
    below = segments[segments.index(route.object_id) :]  # such as `thread_1/runs/1/steps/2`
    return ids | set(below[::2])


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
    return {match.decode() for match in matches} | set(_ids_in_members(text)) | set(_ids_after_members(text))


def _ids_after_members(text: bytes) -> Iterator[str]:
    """Yield the values of members that refer to objects, at any depth."""
    ends = [match.end() for match in _MEMBER.finditer(text)]
    if b"\\u00" in text:
        escaped = (match for match in _ESCAPED_MEMBER.finditer(text) if b"\\" in match[1])
        ends += [match.end() for match in escaped if msgspec.json.decode(match[1]) in _REFERRING]
    for end in ends:
        if (match := _REFERENCE.match(text, end)) is not None:
            for value in _STRINGS.findall(match[2] or b"") if match[1] is None else (match[1],):
                with contextlib.suppress(ValueError):  # no JSON
                    yield msgspec.json.decode(value, type=str)


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
    container: object = None  # of a message; without one, the upstream stores nothing


class _Event(msgspec.Struct):
    response: _CreatedObject = _CreatedObject()


class _References(msgspec.Struct):
    previous_response_id: object = None
    conversation: object = None
