"""Completion of the events of a Responses stream: some servers leave members out that clients need.

llama.cpp, for instance, sends no `sequence_number`, no `output_index`, and a first `response` without `output`.
"""

from collections.abc import Sequence
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


# Types of items, by a part of the type of an event, or of its part, that belongs to one.
_ITEM_TYPES = {
    "function_call": "function_call",
    "custom_tool_call": "custom_tool_call",
    "mcp_call": "mcp_call",
    "reasoning": "reasoning",
    "output_text": "message",
    "refusal": "message",
}


class _OutputItem(msgspec.Struct):
    """Item of the output, as far as its events have come."""

    index: int
    item_id: str
    item_type: str
    call_id: str = ""
    has_server_id: bool = False
    """True if its server has named its id."""
    is_done: bool = False
    part_counts: dict[str, int] = {}
    """Number of the parts that have begun, by the member with their position."""


class EventCompleter:
    """Completer of the events of one stream of a response of `model`. `created_at` is in seconds since 1970."""

    def __init__(self, model: str, created_at: int) -> None:
        self._defaults = response_of([], "", model, created_at) | {"usage": None}
        self._number = count()
        self._items = list[_OutputItem]()

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
            members["response"] = _complete(whole, self._defaults, self._items)
        elif item := as_object(members.get("item")):
            known = self._item_of(kind, members)
            item["id"] = item.get("id") or known.item_id
            known.is_done = known.is_done or kind.endswith(".done")
        elif members.keys() & {"delta", "part", "annotation"} or kind.endswith(".done"):
            self._complete_part(kind, members)
        return response_event(members)

    def _complete_part(self, kind: str, members: JsonObject) -> None:
        """Add the position of a part, or of a piece of it, to its event."""
        known, part = self._item_of(kind, members), as_object(members.get("part"))
        members["item_id"] = members.get("item_id") or known.item_id
        if "function_call" in kind:
            return
        position = "summary_index" if "reasoning_summary" in kind else "content_index"
        if kind.endswith("part.added"):
            known.part_counts[position] = known.part_counts.get(position, 0) + 1
        members.setdefault(position, max(0, known.part_counts.get(position, 0) - 1))
        if kind in {"response.output_text.delta", "response.output_text.done"}:
            members.setdefault("logprobs", [])
        if part.get("type") == "output_text":
            part.setdefault("annotations", [])

    def _item_of(self, kind: str, members: JsonObject) -> _OutputItem:
        """Return the item that an event belongs to, a new one if it is the first, and add its position to the event."""
        item, index = as_object(members.get("item")), members.get("output_index")
        server_id, call_id = str(item.get("id") or members.get("item_id") or ""), str(item.get("call_id") or "")
        item_type = str(item.get("type") or _item_type(kind, members))
        known = self._named(server_id, call_id) or self._at(index, server_id)
        if known is None and index is None and kind != "response.output_item.added":
            known = self._latest(item_type, has_server_id=bool(server_id), is_done=kind.endswith(".done"))
        if known is None:
            number = index if isinstance(index, int) else max((each.index + 1 for each in self._items), default=0)
            known = _OutputItem(number, call_id or f"item_{number}", item_type)
            self._items.append(known)
        if server_id:
            known.item_id, known.has_server_id = server_id, True
        known.call_id = call_id or known.call_id
        if index is None:
            members["output_index"] = known.index
        return known

    def _named(self, server_id: str, call_id: str) -> _OutputItem | None:
        names = {server_id, call_id} - {""}
        return next((each for each in self._items if names & {each.item_id, each.call_id}), None)

    def _at(self, index: object, server_id: str) -> _OutputItem | None:
        """Return the item at a position, unless its server has named another id for it; some send one index for all."""
        items = [each for each in self._items if each.index == index]
        return next((each for each in reversed(items) if not (server_id and each.has_server_id)), None)

    def _latest(self, item_type: str, *, has_server_id: bool, is_done: bool) -> _OutputItem | None:
        """Return the latest item of a type that an event without a known id can belong to; None if there is none.

        An event with an id belongs to an item without one, and only an event with `is_done` to one that is done.
        """
        items = [each for each in reversed(self._items) if not (has_server_id and each.has_server_id)]
        of_type = [each for each in items if "" in {item_type, each.item_type} or item_type == each.item_type]
        is_open = next((each for each in of_type if not each.is_done), None)
        return is_open or (of_type[0] if is_done and of_type else None)


def _item_type(kind: str, members: JsonObject) -> str:
    """Return the type of the item to which an event of a part belongs; empty if it is not known."""
    text = f"{kind} {as_object(members.get('part')).get('type')}"
    return next((item_type for name, item_type in _ITEM_TYPES.items() if name in text), "")


def _complete(whole: JsonObject, defaults: JsonObject, known: Sequence[_OutputItem] = ()) -> JsonObject:
    """Return the response with the members of `defaults` that it lacks, but no `id`, and with an id for each item.

    `known` are the items that the events before it have described.
    """
    whole = {name: value for name, value in defaults.items() if name != "id"} | whole
    if usage := as_object(whole.get("usage")):
        whole["usage"] = _complete_usage(usage)
    try:
        items = msgspec.convert(whole["output"], list[JsonObject])
    except msgspec.ValidationError:
        return whole
    return whole | {"output": [_with_id(item, index, known) for index, item in enumerate(items)]}


def _complete_usage(usage: JsonObject) -> JsonObject:
    whole = usage_of(0, 0) | usage
    for name in ("input_tokens_details", "output_tokens_details"):
        whole[name] = as_object(usage_of(0, 0)[name]) | as_object(whole[name])
    return whole


def _with_id(item: JsonObject, index: int, known: Sequence[_OutputItem]) -> JsonObject:
    """Return an item of a whole response with an id: its own, else that of its events."""
    call_id = item.get("call_id")
    same = (each.item_id for each in known if (each.call_id == call_id if call_id else each.index == index))
    item_id = item.get("id") or next(same, call_id or f"item_{index}")
    return {"id": item_id} | item | {"id": item_id}


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
