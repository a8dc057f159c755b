"""Completion of the events of a Responses stream: some servers leave members out that clients need.

llama.cpp, for instance, sends no `sequence_number`, no `output_index`, and a first `response` without `output`.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import count, islice
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
    item_type: str = ""
    """Empty until an event says it."""
    call_id: str = ""
    has_server_id: bool = False
    """True if its server has named its id."""
    is_done: bool = False
    part_counts: dict[str, int] = {}
    """Number of the parts that have begun, by the member with their position."""
    annotation_counts: dict[str, int] = {}
    """Number of the annotations that have come, by the position of their part."""

    def can_be(self, item_type: str) -> bool:
        """Return True if the item is of this type, or one of the two is not known."""
        return "" in {item_type, self.item_type} or item_type == self.item_type


_ADDED = "response.output_item.added"
# Number of the latest items among which an event without a known id and index looks for its own.
_SEARCHED_ITEMS = 32


class EventCompleter:
    """Completer of the events of one stream of a response of `model`. `created_at` is in seconds since 1970."""

    def __init__(self, model: str, created_at: int) -> None:
        self._defaults = response_of([], "", model, created_at) | {"usage": None}
        self._number = count()
        self._items = list[_OutputItem]()
        self._by_name: dict[str, _OutputItem] = {}  # by the id of its server, and by the id of its call
        self._by_index: dict[int, _OutputItem] = {}  # the latest, as some servers send one index for all
        self._next_index = 0

    def feed(self, event: bytes) -> bytes:
        """Return `event` with what it lacks; one that is no JSON object with a type stays as it is."""
        try:
            members = msgspec.json.decode(sse.data_of(event), type=JsonObject)
        except (ValueError, RecursionError):
            return event
        kind = str(members.get("type", ""))
        if not kind.startswith("response."):
            return event
        _set_missing(members, "sequence_number", next(self._number))
        if whole := as_object(members.get("response")):
            members["response"] = _complete(whole, self._defaults, self._items)
        elif payload := as_object(members.get("item")):
            item = self._item_of(kind, members)
            payload["id"] = payload.get("id") or item.item_id
            item.is_done = item.is_done or kind.endswith(".done")
        elif members.keys() & {"delta", "part", "annotation"} or kind.endswith(".done"):
            self._complete_part(kind, members)
        return response_event(members)

    def _complete_part(self, kind: str, members: JsonObject) -> None:
        """Add the position of a part, or of a piece of it, to its event."""
        item, part = self._item_of(kind, members), as_object(members.get("part"))
        members["item_id"] = members.get("item_id") or item.item_id
        if "function_call" in kind:
            return
        position = "summary_index" if "reasoning_summary" in kind else "content_index"
        if kind.endswith("part.added"):
            item.part_counts[position] = item.part_counts.get(position, 0) + 1
        _set_missing(members, position, max(0, item.part_counts.get(position, 0) - 1))
        if "annotation" in members:
            part_index = str(members[position])
            number = item.annotation_counts.get(part_index, 0)
            item.annotation_counts[part_index] = number + 1
            _set_missing(members, "annotation_index", number)
        if kind in {"response.output_text.delta", "response.output_text.done"}:
            _set_missing(members, "logprobs", [])
        if part.get("type") == "output_text":
            _set_missing(part, "annotations", [])

    def _item_of(self, kind: str, members: JsonObject) -> _OutputItem:
        """Return the item that an event belongs to, a new one if it is the first, and add its position to the event."""
        payload, index = as_object(members.get("item")), members.get("output_index")
        index = index if isinstance(index, int) else None
        server_id, call_id = str(payload.get("id") or members.get("item_id") or ""), str(payload.get("call_id") or "")
        item_type = str(payload.get("type") or _item_type(kind, members))
        item = self._by_name.get(server_id) or self._by_name.get(call_id)
        if item is None and index is not None:
            item = self._at(index, server_id, item_type, is_added=kind == _ADDED)
        elif item is None and kind != _ADDED:
            item = self._latest(item_type, has_server_id=bool(server_id), is_done=kind.endswith(".done"))
        item = item or self._new_item(index, call_id)
        item.item_type = item.item_type or item_type
        if server_id and not item.has_server_id:
            item.item_id, item.has_server_id = server_id, True
            self._by_name[server_id] = item
        if call_id and not item.call_id:
            item.call_id = call_id
            self._by_name.setdefault(call_id, item)
        if index is None:
            members["output_index"] = item.index
        return item

    def _at(self, index: int, server_id: str, item_type: str, *, is_added: bool) -> _OutputItem | None:
        """Return the item at a position; None if an event with this new id begins another one there."""
        item = self._by_index.get(index)
        if item is None or not (server_id and item.has_server_id):
            return item
        # Some servers send one index for all items, others a new id in each event of an item.
        is_other = is_added or item.is_done or not item.can_be(item_type)
        return None if is_other else item

    def _latest(self, item_type: str, *, has_server_id: bool, is_done: bool) -> _OutputItem | None:
        """Return the latest item of a type that an event without a known id can belong to; None if there is none.

        An event with an id belongs to an item without one, and only an event with `is_done` to one that is done.
        """
        latest = islice(reversed(self._items), _SEARCHED_ITEMS)
        items = [each for each in latest if each.can_be(item_type) and not (has_server_id and each.has_server_id)]
        is_open = next((each for each in items if not each.is_done), None)
        return is_open or (items[0] if is_done and items else None)

    def _new_item(self, index: int | None, call_id: str) -> _OutputItem:
        number = self._next_index if index is None else index
        self._next_index = max(self._next_index, number + 1)
        item = self._by_index[number] = _OutputItem(number, call_id or f"item_{number}")
        self._items.append(item)
        return item


def _set_missing(members: JsonObject, name: str, value: object) -> None:
    """Set a member that is not there, or null."""
    if members.get(name) is None:
        members[name] = value


def _item_type(kind: str, members: JsonObject) -> str:
    """Return the type of the item to which an event of a part belongs; empty if it is not known."""
    text = f"{kind} {as_object(members.get('part')).get('type')}"
    return next((item_type for name, item_type in _ITEM_TYPES.items() if name in text), "")


def _complete(whole: JsonObject, defaults: JsonObject, items: Sequence[_OutputItem] = ()) -> JsonObject:
    """Return the response with the members of `defaults` that it lacks, but no `id`, and with an id for each item.

    `items` are those that the events before it have described.
    """
    whole = {name: value for name, value in defaults.items() if name != "id"} | whole
    if usage := as_object(whole.get("usage")):
        whole["usage"] = _complete_usage(usage)
    try:
        output = msgspec.convert(whole["output"], list[JsonObject])
    except msgspec.ValidationError:
        return whole
    return whole | {"output": list(_with_ids(output, items))}


def _complete_usage(usage: JsonObject) -> JsonObject:
    whole = usage_of(0, 0) | usage
    for name in ("input_tokens_details", "output_tokens_details"):
        whole[name] = as_object(usage_of(0, 0)[name]) | as_object(whole[name])
    return whole


def _with_ids(output: list[JsonObject], items: Sequence[_OutputItem]) -> Iterator[JsonObject]:
    """Yield the items of a whole response with ids: their own, else those of their events.

    An item without an id is the one with its call id, else the first of its type that is not used yet.
    """
    own_ids = {str(item.get("id")) for item in output}
    unused = defaultdict[str, deque[str]](deque)
    for each in items:
        if each.item_id not in own_ids:
            unused[each.call_id or each.item_type].append(each.item_id)
    for index, item in enumerate(output):
        names = (str(item.get("call_id") or ""), str(item.get("type") or ""), "")
        item_id = item.get("id") or next((unused[name].popleft() for name in names if unused[name]), None)
        item_id = item_id or item.get("call_id") or f"item_{len(items) + index}"
        yield {"id": item_id} | item | {"id": item_id}


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
