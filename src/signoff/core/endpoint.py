"""The endpoints of the OpenAI API whose shapes are known here. What else an upstream has passes as it is."""

from __future__ import annotations

import re

import msgspec

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
MODERATIONS = "/v1/moderations"
RERANK = "/v1/rerank"
EDITS = "/v1/edits"

# These take and give JSON; anything else from a model is garbled.
KNOWN = frozenset({CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, MODERATIONS, RERANK, EDITS})
STREAMED = frozenset({CHAT, COMPLETIONS, RESPONSES})

# Upstreams are asked under their own base address: nobody climbs out of it.
_ROUTE = re.compile(r"(?:(GET|PUT|PATCH|DELETE) )?(/v1(?:/[A-Za-z0-9_-]+)+)(?:\?([!-~]{0,4000}))?")
_HAS_AN_ID = re.compile(r"[0-9A-Z]")


class Route(msgspec.Struct, frozen=True):
    """A request's method, its path and its query."""

    method: str
    path: str
    query: str | None

    @property
    def names(self) -> str | None:
        """The id of the object that the path is about: the first part after the collection's that is no word."""
        return next((part for part in self.path.split("/")[3:] if _HAS_AN_ID.search(part)), None)


def route_of(asked: str) -> Route | None:
    """What a job's `path` asks for, as one would write it: `GET /v1/responses/resp_1?stream=true`; a POST says no more
    than its path. None where it can be no upstream's.
    """
    found = _ROUTE.fullmatch(asked)
    return None if found is None else Route(found[1] or "POST", found[2], found[3])


def asked_for(method: str, path: str, query: str = "") -> str:
    """The other way round."""
    return ("" if method == "POST" else f"{method} ") + path + (f"?{query}" if query else "")
