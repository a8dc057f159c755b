"""Streams of `/v1/responses`: the response that their events add up to.

The last event has the whole response. Some servers leave that event out, or leave the output out of it.
"""

from __future__ import annotations

from typing import cast

from signoff.core import sse
from signoff.core.decode import JsonObject
from signoff.core.dialects.surrogates import encode_with_surrogates

COMPLETED = "response.completed"
FINAL_EVENTS = frozenset({COMPLETED, "response.incomplete", "response.failed"})
# Texts that grow: by the middle of an event's type, the type of their part, or of their item, and their member in it.
_PARTS = {
    "output_text": ("output_text", "text"),
    "refusal": ("refusal", "refusal"),
    "reasoning_text": ("reasoning_text", "text"),
    "reasoning_summary_text": ("summary_text", "text"),
}
_CALLS = {
    "function_call_arguments": ("function_call", "arguments"),
    "mcp_call_arguments": ("mcp_call", "arguments"),
    "custom_tool_call_input": ("custom_tool_call", "input"),
}


def is_response_event(event: JsonObject) -> bool:
    """Return True if `event`, decoded, is one of a response's stream."""
    return str(event.get("type")).startswith("response.")


class ResponseStream:
    """A response, from the events that have come."""

    def __init__(self) -> None:
        self.has_begun = False
        """True once an event has come."""
        self.is_final = False
        """True once the last event has come, which has the whole response."""
        self._response = JsonObject()
        self._items = dict[int | str, _Item]()
        self._indexes = dict[str, int]()
        self._latest: int | str = 0
        self._number: int | None = None

    @property
    def has_ended(self) -> bool:
        """True if there are items, and all of them are done."""
        return bool(self._items) and all(item.is_done for item in self._items.values())

    def add(self, event: JsonObject) -> None:
        """Add a decoded event."""
        self.has_begun = True
        kind = str(event.get("type"))
        if isinstance(number := event.get("sequence_number"), int):
            self._number = number
        if isinstance(response := event.get("response"), dict):
            self._response = cast("JsonObject", response)
            self.is_final = self.is_final or kind in FINAL_EVENTS
        elif "item" in event or "delta" in event or kind.endswith(".done"):
            self._item_of(event).add(kind.removeprefix("response."), event)

    def whole(self) -> JsonObject:
        """Return the response; one whose last event is missing is complete, with the items that have come."""
        items = [item.whole() for item in self._items.values()]
        if self.is_final:
            return self._response | ({} if self._response.get("output") or not items else {"output": items})
        ending = {"status": "completed", "output": items}
        return {"object": "response"} | self._response | ending

    def last_event(self) -> bytes:
        """Return the event that completes the stream."""
        number = {} if self._number is None else {"sequence_number": self._number + 1}
        event = {"type": COMPLETED, "response": self.whole()} | number
        return f"event: {COMPLETED}\n".encode() + sse.event(encode_with_surrogates(event))

    def _item_of(self, event: JsonObject) -> _Item:
        """Return the item of an event: by its position, else by its id, else the latest one."""
        item, index = event.get("item"), event.get("output_index")
        item_id = event.get("item_id") or (cast("JsonObject", item).get("id") if isinstance(item, dict) else None)
        if isinstance(index, int):
            self._indexes[str(item_id)] = index
            self._latest = index
        elif item_id:
            self._latest = self._indexes.get(str(item_id), str(item_id))
        return self._items.setdefault(self._latest, _Item())


class _Item:
    """Item of the output."""

    def __init__(self) -> None:
        self.is_done = False
        self._is_whole = False
        self._members = JsonObject()
        self._texts = dict[tuple[str, str], _Text]()

    def add(self, kind: str, event: JsonObject) -> None:
        """Add an event; `kind` is its type without `response.`."""
        if isinstance(item := event.get("item"), dict):
            self._members = cast("JsonObject", item)
            self.is_done = self._is_whole = kind.endswith(".done")
            return
        name, _, action = kind.rpartition(".")
        if name not in _PARTS and name not in _CALLS:
            return
        self._members |= {key: event[key] for key in ("name", "call_id") if event.get(key)}
        self._members.setdefault("id", event.get("item_id"))
        part = (name, str(event.get("summary_index", event.get("content_index"))))
        self._texts.setdefault(part, _Text()).add(event.get("delta"), event.get((_PARTS | _CALLS)[name][1]), action)
        self.is_done = self._is_whole or all(text.is_done for text in self._texts.values())

    def whole(self) -> JsonObject:
        """Return the item as its last event has it, else from its pieces; some servers leave out its arguments."""
        if self._is_whole:
            arguments = {_CALLS[name][1]: text.value for (name, _), text in self._texts.items() if name in _CALLS}
            return self._members | {name: value for name, value in arguments.items() if not self._members.get(name)}
        if not self._texts:
            return self._members
        members = self._members | {"status": "completed"}
        content, summary = list[JsonObject](), list[JsonObject]()
        for (name, _), text in self._texts.items():
            if name in _CALLS:
                kind, member = _CALLS[name]
                return {"type": kind} | members | {member: text.value}
            kind, member = _PARTS[name]
            part: JsonObject = {"type": kind, member: text.value}
            if kind == "output_text":
                part["annotations"] = []
            (summary if kind == "summary_text" else content).append(part)
        if all(name.startswith("reasoning") for name, _ in self._texts):
            return {"type": "reasoning"} | members | {"summary": summary} | ({"content": content} if content else {})
        return {"type": "message", "role": "assistant"} | members | {"content": content}


class _Text:
    """A text that grows, from the pieces that have come."""

    def __init__(self) -> None:
        self.is_done = False
        self._pieces = list[str]()

    @property
    def value(self) -> str:
        """The text."""
        return "".join(self._pieces)

    def add(self, delta: object, whole: object, action: str) -> None:
        """Append `delta`, or set the text to `whole` when it is done."""
        self.is_done = action == "done"
        if self.is_done and isinstance(whole, str):
            self._pieces = [whole]
        elif isinstance(delta, str):
            self._pieces.append(delta)
