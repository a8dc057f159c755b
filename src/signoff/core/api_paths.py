"""Paths of the OpenAI API whose shapes are known here, and routes of all others, which pass through as they are."""

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
# Anthropic's API.
MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
# A payload that goes to its model as it is.
PREDICT = "/predict"

# These take and return JSON; an answer that is not JSON is an error.
KNOWN = frozenset({CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, MODERATIONS, RERANK, EDITS, MESSAGES, COUNT_TOKENS})
# Paths whose answers say something in words.
IN_WORDS = frozenset({CHAT, COMPLETIONS, EDITS, MESSAGES, RESPONSES})
# Where a model has no such path, it is asked for a chat, and the answer is translated.
TRANSLATED = frozenset({MESSAGES, COUNT_TOKENS, RESPONSES, EDITS})
STREAMED = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES})
# Statuses with which servers say that they have no such path.
UNKNOWN_PATH = frozenset({404, 405, 501})

# Collections that are not inference and never go to an upstream. Some upstreams ignore the case of letters.
_NOT_LOCAL = r"(?!/(?i:batches|files|models|uploads)(?![\w-]))"
# The path is appended to the base URL of the upstream, so it must not contain dots.
_ROUTE = re.compile(rf"(?:(GET|PUT|PATCH|DELETE) )?(/v1{_NOT_LOCAL}(?:/[A-Za-z0-9_-]+)+)(?:\?([!-~]{{0,4000}}))?")
_PARTS = re.compile(r"((?:GET|PUT|PATCH|DELETE) )?([^?]*)(\?.*)?", re.DOTALL)
# First segments, after /v1, of the routes that users may call: inference, and objects of their own. All others, such as
# those that make credentials, administer an account or change what a server loads, are for admins.
USER_ROUTES = (
    "assistants",
    "audio",
    "chat",
    "classify",
    "completions",
    "containers",
    "conversations",
    "detokenize",
    "edits",
    "embeddings",
    "images",
    "messages",
    "moderations",
    "pooling",
    "rerank",
    "responses",
    "score",
    "threads",
    "tokenize",
    "vector_stores",
    "videos",
)
_HAS_AN_ID = re.compile(r"[0-9A-Z]")
# Path segments that only group collections.
_GROUPS = {"alpha", "audio", "chat", "chatkit", "fine_tuning", "images", "organization", "realtime"}
# The segment after one of these is an id, even if it looks like a word, unless both are in _ACTIONS.
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
# Collections with an action of theirs, which is no id.
_ACTIONS = {
    ("graders", "run"),
    ("graders", "validate"),
    ("messages", "batches"),
    ("responses", "compact"),
    ("responses", "input_tokens"),
    ("threads", "runs"),
    ("videos", "characters"),
    ("videos", "edits"),
    ("videos", "extensions"),
}


class Route(msgspec.Struct, frozen=True):
    """The method, the path and the query of a request to an upstream."""

    method: str
    """HTTP method, in capitals."""
    path: str
    """Path below the server, such as `/v1/responses/resp_1`."""
    query: str | None
    """Query without its question mark; None if there is none."""

    @property
    def first_segment(self) -> str:
        """The segment after /v1, such as `audio`; `batches` for batches of messages.

        Each request of such a batch names a model of its own, which no policy sees.
        """
        first, *rest = self.path.split("/")[2:]
        return "batches" if first == "messages" and rest and rest[0].lower() == "batches" else first

    @property
    def object_id(self) -> str | None:
        """Id of the object that the path is about: the segment after a collection, else one with digits or capitals."""
        match list(dropwhile(_GROUPS.__contains__, self.path.split("/")[2:])):
            case [kind, part, *rest] if (rest or kind.lower() in _COLLECTIONS) and (kind, part) not in _ACTIONS:
                return part
            case _:
                return next((part for part in self.path.split("/")[3:] if _HAS_AN_ID.search(part)), None)


def parse_route(path: str) -> Route | None:
    """Parse the path of a job, such as `GET /v1/responses/resp_1?stream=true`; a POST has no method in front.

    Return None for a path that must not go to an upstream.
    """
    match = _ROUTE.fullmatch(path)
    return None if match is None else Route(match[1] or "POST", match[2], match[3])


def normalize_route(route: str) -> str:
    """Return the path of a job as `parse_route` reads it: with one slash in front and between its parts.

    Paths of the HTTP API may begin with `/openai`, which is left out. The path of an empty route is `/`.

    >>> normalize_route("openai//v1/chat/completions/"), normalize_route("GET v1/responses//r_1?stream=true")
    ('/v1/chat/completions', 'GET /v1/responses/r_1?stream=true')
    """
    method, path, query = _PARTS.fullmatch(route).groups(default="")  # pyright: ignore[reportOptionalMemberAccess]
    parts = [part for part in path.split("/") if part]
    return f"{method}/{'/'.join(parts[1:] if parts[:1] == ['openai'] else parts)}{query}"


def format_route(method: str, path: str, query: str = "") -> str:
    """Return the path of a job in the form that `parse_route` reads."""
    return ("" if method == "POST" else f"{method} ") + path + (f"?{query}" if query else "")
