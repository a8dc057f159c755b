"""Replies of a fake model in the shapes of OpenAI's API."""

from __future__ import annotations

from typing import Any


def chat_completion(text: str, usage: dict[str, Any] | None, *, model: str = "m") -> dict[str, Any]:
    """Return a chat completion that says `text`."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}


def text_completion(text: str, usage: dict[str, Any] | None, *, model: str = "m") -> dict[str, Any]:
    """Return a text completion that says `text`."""
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    return chat_completion("", usage, model=model) | {"object": "text_completion", "choices": [choice]}


def response(text: str, *, model: str = "m") -> dict[str, Any]:
    """Return a response that says `text`."""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}
    return {"id": "r", "object": "response", "status": "completed", "model": model, "output": [item]}


def chat_chunk(text: str = "", **more: Any) -> dict[str, Any]:
    """Return one event of a streamed chat completion, which adds `text` if there is any."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": text} if text else {}, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]} | more
