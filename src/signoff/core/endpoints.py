"""The endpoints of the OpenAI API whose shapes are known here. What else an upstream has passes as it is."""

from __future__ import annotations

import re
from itertools import dropwhile

import msgspec

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
MODERATIONS = "/v1/moderations"
RERANK = "/v1/rerank"
EDITS = "/v1/edits"
# A payload that goes to its model as it is.
PREDICT = "/predict"

# These take and give JSON; anything else from a model is garbled.
KNOWN = frozenset({CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, MODERATIONS, RERANK, EDITS})
STREAMED = frozenset({CHAT, COMPLETIONS, RESPONSES})

# What is no inference, and kept here. Some upstreams tell no capitals from other letters.
_KEPT_HERE = r"(?!/(?i:batches|files|models|uploads)(?![\w-]))"
# Upstreams are asked under their own base address: nobody climbs out of it.
_ROUTE = re.compile(rf"(?:(GET|PUT|PATCH|DELETE) )?(/v1{_KEPT_HERE}(?:/[A-Za-z0-9_-]+)+)(?:\?([!-~]{{0,4000}}))?")
_HAS_AN_ID = re.compile(r"[0-9A-Z]")
# Below these stand collections,
_SPACES = {"alpha", "audio", "chat", "chatkit", "fine_tuning", "images", "organization", "realtime"}
# and in these whatever comes next is an id, be it a word,
_COLLECTIONS = {
    "assistants",
    "completions",
    "containers",
    "conversations",
    "evals",
    "jobs",
    "responses",
    "threads",
    "vector_stores",
    "videos",
}
# unless it says what is to be done.
_DEEDS = {
    ("graders", "run"),
    ("graders", "validate"),
    ("responses", "compact"),
    ("responses", "input_tokens"),
    ("threads", "runs"),
    ("videos", "characters"),
    ("videos", "edits"),
    ("videos", "extensions"),
}


class Route(msgspec.Struct, frozen=True):
    """A request's method, its path and its query."""

    method: str
    path: str
    query: str | None

    @property
    def object_id(self) -> str | None:
        """The id of the object that the path is about: what stands after its collection, as far as can be seen."""
        match list(dropwhile(_SPACES.__contains__, self.path.split("/")[2:])):
            case [kind, part, *rest] if (rest or kind.lower() in _COLLECTIONS) and (kind, part) not in _DEEDS:
                return part
            case _:
                return next((part for part in self.path.split("/")[3:] if _HAS_AN_ID.search(part)), None)


def parse_route(asked: str) -> Route | None:
    """What a job's `path` asks for, as one would write it: `GET /v1/responses/resp_1?stream=true`; a POST says no more
    than its path. None where it can be no upstream's.
    """
    found = _ROUTE.fullmatch(asked)
    return None if found is None else Route(found[1] or "POST", found[2], found[3])


def format_route(method: str, path: str, query: str = "") -> str:
    """The other way round."""
    return ("" if method == "POST" else f"{method} ") + path + (f"?{query}" if query else "")
