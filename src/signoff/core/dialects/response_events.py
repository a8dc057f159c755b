"""Completion of the events of a Responses stream: some servers leave members out that clients need.

llama.cpp, for instance, sends no `sequence_number`, no `output_index`, and a first `response` without `output`.
"""

from itertools import count
from typing import Any

import msgspec

from signoff.core import sse
from signoff.core.decode import JsonObject, as_object
from signoff.core.dialects.response import response_event, response_of, usage_of


class _Event(msgspec.Struct):
    type: str = ""
    sequence_number: Any = None
    response: Any = None


def is_incomplete(first_event: bytes) -> bool:
    """Return True if the first event of a stream shows that its server leaves members out."""
    try:
        first = msgspec.json.decode(sse.data_of(first_event), type=_Event)
    except (ValueError, RecursionError):
        return False
    whole = as_object(first.response)
    return bool(whole) and (first.sequence_number is None or "output" not in whole)


class EventCompleter:
    """Completer of the events of one stream of a response of `model`. `created_at` is in seconds since 1970."""

    def __init__(self, model: str, created_at: int) -> None:
        self._defaults = response_of([], "", model, created_at) | {"usage": None}
        self._number = count()
        self._indexes: dict[str, int] = {}
        self._item_id = ""
        self._part_counts: dict[str, int] = {}

    def feed(self, event: bytes) -> bytes:
        """Return `event` with what it lacks; one that is no JSON object with a type stays as it is."""
        try:
            members = msgspec.json.decode(sse.data_of(event), type=JsonObject)
        except (ValueError, RecursionError):
            return event
        kind = str(members.get("type", ""))
        if not kind.startswith("response."):
            return event
        members.setdefault("sequence_number", next(self._number))
        if whole := as_object(members.get("response")):
            members["response"] = _complete(whole, self._defaults)
        if item := as_object(members.get("item")):
            self._item_id = str(item.setdefault("id", _item_id(item, len(self._indexes))))
            members.setdefault("output_index", self._index_of(self._item_id))
        elif "delta" in members or "part" in members or kind.endswith(".done"):
            self._complete_part(kind, members)
        return response_event(members)

    def _complete_part(self, kind: str, members: JsonObject) -> None:
        """Add the position of a part, or of a piece of it, to its event."""
        self._item_id = str(members.setdefault("item_id", self._item_id))
        members.setdefault("output_index", self._index_of(self._item_id))
        if "function_call" in kind:
            return
        if kind == "response.content_part.added":
            self._part_counts[self._item_id] = self._part_counts.get(self._item_id, 0) + 1
        position = "summary_index" if "reasoning_summary" in kind else "content_index"
        members.setdefault(position, max(0, self._part_counts.get(self._item_id, 0) - 1))
        if kind.startswith("response.output_text."):
            members.setdefault("logprobs", [])
        if (part := as_object(members.get("part"))).get("type") == "output_text":
            part.setdefault("annotations", [])

    def _index_of(self, item_id: str) -> int:
        return self._indexes.setdefault(item_id, len(self._indexes))


def _complete(whole: JsonObject, defaults: JsonObject) -> JsonObject:
    """Return the response with the members of `defaults` that it lacks, but no `id`, and with an id for each item."""
    whole = {name: value for name, value in defaults.items() if name != "id"} | whole
    if usage := as_object(whole.get("usage")):
        whole["usage"] = _complete_usage(usage)
    try:
        items = msgspec.convert(whole["output"], list[JsonObject])
    except msgspec.ValidationError:
        return whole
    return whole | {"output": [{"id": _item_id(item, index)} | item for index, item in enumerate(items)]}


def _complete_usage(usage: JsonObject) -> JsonObject:
    whole = usage_of(0, 0) | usage
    for name in ("input_tokens_details", "output_tokens_details"):
        whole[name] = as_object(usage_of(0, 0)[name]) | as_object(whole[name])
    return whole


def _item_id(item: JsonObject, index: int) -> str:
    return str(item.get("call_id") or f"item_{index}")


def complete_body(body: bytes, model: str, created_at: int) -> bytes:
    """Return a whole response with the members that every response has; other bodies stay as they are."""
    if b'"parallel_tool_calls"' in body:
        return body
    try:
        members = msgspec.json.decode(body, type=JsonObject)
    except (ValueError, RecursionError):
        return body
    if not isinstance(members.get("output"), list):
        return body
    return msgspec.json.encode(_complete(members, response_of([], "", model, created_at)))
