"""Ask: a request for an answer as a door hands it over, before anything is decided about it."""

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from signoff.core.access import Caller
from signoff.core.api_paths import CHAT, PREDICT
from signoff.core.cache import CacheControl, CacheRule, Sampling
from signoff.core.delivery import ReplyAddress, WebhookTarget
from signoff.core.model import Model, accepts_any_json
from signoff.core.pipelines.composed import Pipeline
from signoff.core.reviews.policy import Review
from signoff.errors import BadRequest

MAX_KEY_LENGTH = 255
Lane = Literal["now", "later"]


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request for an answer. A door creates it; `work` reads it and derives others from it."""

    door: str
    """Name of the door that took the request, such as `openai` or `native`."""
    caller: Caller
    """The authenticated caller, who owns the job."""
    path: str = CHAT
    """Route of the request in the form of `api_paths.format_route`; a POST is its path alone."""
    body: bytes
    """JSON as it came; another kind of body is a `BinaryBody` in JSON."""
    requires_members: bool = False
    """True to refuse a body that lacks what its path requires, such as `messages`; False to make it the text of a
    chat."""
    target: str | None = None
    """Name of a model, prompt or pipeline; None for the default model."""
    pipeline: Pipeline | None = None
    """Pipeline to run, in a certain version; `target` is not resolved then."""
    stream: bool = False
    """True if the caller wants server-sent events."""
    lane: Lane = "later"
    """`now` while the caller waits for the answer, `later` for the queue."""
    priority: int = 5
    """From 0 to 9; jobs with a higher priority are claimed first."""
    metadata: bytes = b"null"
    """JSON of the caller's own, stored with the job and returned unchanged."""
    client_id: str | None = None
    """Id that the caller chose for the job, unique among the jobs of the user and the door; None for none."""
    idempotency_key: str | None = None
    """`Idempotency-Key` of the request; None for none."""
    due_seconds: float = 0
    """Seconds from now until the job may be claimed."""
    webhook: WebhookTarget | None = None
    """Webhook that receives the end of the job; None for none."""
    reply_to: str | None = None
    """Name of the stream whose response topic receives the end of the job; None for none."""
    reply: ReplyAddress = ReplyAddress()
    """Reply address that a message on a topic names."""
    wait_seconds: float | None = None
    """Longest time to wait for the review of a held answer; None for the server's setting."""
    door_review: Review = "never"
    """Review rule of the door, for models that have none of their own."""
    is_retry: bool = False
    """True if the client says that it sent the same request before and got no answer."""
    cache: CacheRule | None = None
    """Cache rule of the door; the rules of the model and the token win over it."""
    cache_control: CacheControl = CacheControl()
    """The caller's `Cache-Control`."""
    sampling: Sampling | None = None
    """Sampling members of `body`, if the door has parsed them already."""
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Headers of the HTTP request, with names in lower case; a model gets those that its `pass_headers` names."""
    key_id: int | None = None
    """Upstream key to send with the request; None for the one of the token, else of the model."""


def check_idempotency_key(key: str | None) -> None:
    """Raise BadRequest for a key that is not valid; None stands for no key."""
    if key is not None and not 0 < len(key) <= MAX_KEY_LENGTH:
        raise BadRequest(f"`Idempotency-Key` must be 1 to {MAX_KEY_LENGTH} characters (got {len(key)}).")


def path_for(model: Model, path: str, body: bytes) -> str:
    """Return the path to ask `model` at, which is `path` except that chats and predictions replace each other.

    A model that takes any JSON is asked for a prediction if `body` is no chat; any other is asked for a chat instead of
    a prediction.
    """
    if not accepts_any_json(model):
        return CHAT if path == PREDICT else path
    return PREDICT if path == CHAT and not _is_chat(body) else path


def as_chat(payload: bytes) -> bytes:
    """Convert `payload`, which is JSON, to a chat body.

    A text, `{"input": text}` or `{"prompt": text}` becomes a user message, and the other members of such an object stay
    as they are. Any other JSON value becomes a user message with the value as it is written.
    """
    if _is_chat(payload):
        return payload
    match msgspec.json.decode(payload):
        case {"input": str() as text, **members} | {"prompt": str() as text, **members}:
            members.pop("prompt", None)
        case str() as text:
            members = {}
        case _:
            text, members = payload.decode(), {}
    return msgspec.json.encode(members | {"messages": [{"role": "user", "content": text}]})


class _Chat(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw(b"null")


# Matches the way in which nearly all clients begin a chat body.
_CHAT_START = re.compile(rb'\s*\{\s*("model"\s*:\s*"[^"\\]*"\s*,\s*)?"messages"\s*:\s*\[')


def _is_chat(payload: bytes) -> bool:
    """Return True if `payload` has messages, without decoding anything else, since bodies can be large."""
    if _CHAT_START.match(payload):
        return True
    try:
        return bytes(msgspec.json.decode(payload, type=_Chat).messages) != b"null"
    except msgspec.ValidationError:
        return False
