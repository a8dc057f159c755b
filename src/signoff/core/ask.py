"""What a door hands over: one request for an answer, before anything was decided about it."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from signoff.core.access import Caller
from signoff.core.cache import CacheControl, CacheRule, Sampling
from signoff.core.delivery import WebhookTarget
from signoff.core.endpoints import CHAT, PREDICT
from signoff.core.model import Model, accepts_any_json
from signoff.core.pipelines.composed import Pipeline
from signoff.core.policy import Review

Lane = Literal["now", "later"]


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `body` and `metadata` are JSON as they came; `target` is None for the default model.

    `is_retry`: the caller's client says that it asked the same before, and got no answer. `cache` is the door's rule,
    `fresh` the caller's own; `sampling` is what `body` says about chance, where the door has read it already.
    `reply_to`: the stream on whose response topic the end is told.
    `pipeline`: what is run, whatever else is called `target`.
    `key_id`: the upstream key to ask with; None for the token's, else the model's.
    """

    door: str
    caller: Caller
    path: str = CHAT
    body: bytes
    target: str | None = None
    pipeline: Pipeline | None = None
    stream: bool = False
    lane: Lane = "later"
    priority: int = 5
    metadata: bytes = b"null"
    client_id: str | None = None
    idempotency_key: str | None = None
    due_seconds: float = 0
    webhook: WebhookTarget | None = None
    reply_to: str | None = None
    wait_seconds: float | None = None
    door_review: Review = "never"
    is_retry: bool = False
    cache: CacheRule | None = None
    cache_control: CacheControl = CacheControl()
    sampling: Sampling | None = None
    key_id: int | None = None


def path_for(model: Model, path: str, body: bytes) -> str:
    """What `model` is asked for: a chat where it knows nothing else, a prediction where `body` is no chat."""
    if not accepts_any_json(model):
        return CHAT if path == PREDICT else path
    return PREDICT if path == CHAT and not _is_chat(body) else path


def as_chat(payload: bytes) -> bytes:
    """`payload`, which is JSON, as a chat body: a text, `{"input": text}` or `{"prompt": text}` is a user's message.

    Other members of such an object stay as they are; any other JSON value is a message as it is written.
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


# How clients write a chat, which is nearly all that comes.
_USUAL = re.compile(rb'\s*\{\s*("model"\s*:\s*"[^"\\]*"\s*,\s*)?"messages"\s*:\s*\[')


def _is_chat(payload: bytes) -> bool:
    """Whether there are messages, without a look at anything else: bodies can be large."""
    if _USUAL.match(payload):
        return True
    try:
        return bytes(msgspec.json.decode(payload, type=_Chat).messages) != b"null"
    except msgspec.ValidationError:
        return False
