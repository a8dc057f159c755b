"""What an answer leaves behind at its upstream: objects that later requests name by their ids."""

from __future__ import annotations

import re

import msgspec

from signoff.core.endpoint import KNOWN, RESPONSES, route_of

LONGEST_ID = 255
# OpenAI's prefixes of what can be named inside a body (API reference: responses, conversations, vector stores, …).
_NAMED = re.compile(rb'"((?:resp|conv|vs|asst|thread|run|cntr|file|eval|ftjob)[_-][0-9A-Za-z_-]{1,250})"')


def leaves_nothing(path: str) -> bool:
    """Whether an answer to `path` is all that there is of it."""
    return path in KNOWN and path != RESPONSES


def made_by(path: str, body: bytes) -> str | None:
    """The id of what a POST to `path` made, going by its answer."""
    if leaves_nothing(path) or not path.startswith("/v1/"):
        return None
    try:
        made = msgspec.json.decode(body, type=_Made).id
    except (ValueError, RecursionError):
        return None
    return made if made and len(made) <= LONGEST_ID else None


def made_in(event: bytes) -> str | None:
    """The id of the response that an event of its stream names."""
    try:
        return msgspec.json.decode(event, type=_Event).response.id
    except (ValueError, RecursionError):
        return None


def is_new(path: str) -> bool:
    """Whether `path` asks for something new, and not for what was made before."""
    if path in KNOWN:
        return True
    route = route_of(path)
    return route is None or (route.method == "POST" and route.names is None)


def named_in(body: bytes) -> set[str]:
    """The ids of such objects in a request's body."""
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except (ValueError, RecursionError):
        asked = _Asked()
    conversation = asked.conversation.id if isinstance(asked.conversation, _Made) else asked.conversation
    named = {found.decode() for found in _NAMED.findall(body)}
    return named | {name for name in (asked.previous_response_id, conversation) if name}


class _Made(msgspec.Struct, frozen=True):
    id: str | None = None


class _Event(msgspec.Struct):
    response: _Made = _Made()


class _Asked(msgspec.Struct):
    previous_response_id: str | None = None
    conversation: _Made | str | None = None
