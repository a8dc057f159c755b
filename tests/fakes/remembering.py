"""Upstream that remembers, as OpenAI's API does: conversations, responses, their items, and requests that name them.

Each answer has a secret of its own, and repeats all texts that the request can read. If the request has tools, the
secret is in the arguments of a call.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from fakes.http_server import RecordedRequest, Reply, chunked, json_reply, sse_event, whole

_numbers = itertools.count(1)
_texts: dict[str, list[str]] = {}


def new_id(prefix: str) -> str:
    return f"{prefix}_{next(_numbers):032x}"


async def keep_history(request: RecordedRequest) -> Reply:
    """Answer a request for conversations and responses."""
    match request.method, request.path.split("?")[0].split("/")[3:]:
        case "POST", ["conversations"]:
            conversation = new_id("conv")
            _texts[conversation] = []
            return json_reply({"id": conversation, "object": "conversation"})
        case "GET", ["conversations", conversation, "items"]:
            return json_reply({"object": "list", "data": [{"text": text} for text in _texts.get(conversation, [])]})
        case "GET", ["responses", response]:
            return json_reply({"id": response, "object": "response", "text": " ".join(_texts.get(response, []))})
        case "POST", ["responses"]:
            return _respond(request.json())
        case _:
            return whole(b'{"error": {"message": "Not here."}}', status=404)


def _respond(body: dict[str, Any]) -> Reply:
    conversation = body.get("conversation")
    conversation = conversation["id"] if isinstance(conversation, dict) else conversation
    named = [conversation, body.get("previous_response_id")]
    items = body["input"] if isinstance(body["input"], list) else []
    named += [item["id"] for item in items if item.get("type") == "item_reference"]
    earlier = [text for name in named if name for text in _texts.get(name, [])]
    own = f"secret-{next(_numbers)}."
    texts = [*earlier, own]
    response, message = new_id("resp"), new_id("msg")
    if conversation:
        _texts.setdefault(conversation, []).append(texts[-1])
    _texts[response] = _texts[message] = texts
    said = " ".join(earlier if body.get("tools") else texts)
    content = [{"type": "output_text", "text": said, "annotations": []}]
    output: list[dict[str, Any]] = [
        {"id": message, "type": "message", "role": "assistant", "status": "completed", "content": content}
    ]
    if body.get("tools"):
        call = {"call_id": new_id("call"), "name": "tell", "arguments": json.dumps({"secret": own})}
        output.append({"id": new_id("fc"), "type": "function_call", "status": "completed"} | call)
    answer = {"id": response, "object": "response", "status": "completed", "output": output}
    if not body.get("stream"):
        return json_reply(answer)
    kinds = ("response.created", "response.completed")
    return chunked(*(sse_event({"type": kind, "response": answer}, name=kind) for kind in kinds))
