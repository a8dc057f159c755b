"""What a door hands over: one request for an answer, before anything was decided about it."""

from __future__ import annotations

from typing import Literal

import msgspec

from signoff.core.access import Caller
from signoff.core.policy import Review

Lane = Literal["now", "later"]

CHAT = "/v1/chat/completions"


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `body` and `metadata` are JSON as they came; `target` is None for the default model."""

    door: str
    caller: Caller
    path: str = CHAT
    body: bytes
    target: str | None = None
    stream: bool = False
    lane: Lane = "later"
    priority: int = 5
    metadata: bytes = b"null"
    idempotency_key: str | None = None
    due_seconds: float = 0
    wait_seconds: float | None = None
    door_review: Review = "never"


class _Prompt(msgspec.Struct):
    messages: msgspec.Raw | None = None
    input: str | None = None
    prompt: str | None = None


def as_chat(payload: bytes) -> bytes:
    """`payload` as a chat body: `{"input": text}`, a bare text or any other JSON value becomes a user's message."""
    try:
        told = msgspec.json.decode(payload, type=_Prompt)
    except msgspec.ValidationError:
        told = _Prompt()
    if told.messages is not None:
        return payload
    text = told.input or told.prompt
    members: dict[str, object] = {}
    if text is not None:
        members = msgspec.json.decode(payload, type=dict[str, object])
        members = {name: value for name, value in members.items() if name not in {"input", "prompt"}}
    else:
        value = msgspec.json.decode(payload)
        text = value if isinstance(value, str) else payload.decode()
    return msgspec.json.encode(members | {"messages": [{"role": "user", "content": text}]})
