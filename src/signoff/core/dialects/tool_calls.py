"""Tool calls in the deltas of a chat completion, which servers cut in many ways.

OpenAI sends the id, the name and the index of a call first, and then its arguments under that index. Others leave out
the index or the id, repeat the name or the id in every delta, give each delta a new id, or give all calls one index.
"""

from __future__ import annotations

from typing import cast

import msgspec

from signoff.core.decode import JsonObject

# Members of a call that invoke a tool, and the members of these whose texts grow.
_KINDS = ("function", "custom")
_GROWING = {"arguments", "input"}


class ToolCalls:
    """The calls of one message, from the deltas that have come."""

    def __init__(self) -> None:
        self._calls = list[_ToolCall]()

    @property
    def count(self) -> int:
        """Number of the calls that have begun."""
        return len(self._calls)

    def add(self, deltas: object) -> list[tuple[int, str]]:
        """Add the calls, or pieces of calls, of one delta; return the number of the call of each, and its new text.

        Numbers count from 0, in the order in which the calls began. Raises ValueError if the deltas have another form.
        """
        earlier, added = list(self._calls), list[tuple[int, str]]()  # two items of one delta are two calls
        for delta in msgspec.convert([deltas] if isinstance(deltas, dict) else deltas, list[JsonObject]):
            index = _index_of(delta)
            call = self._with_id(delta.get("id")) or _continued(earlier, delta, index)
            if call is None:
                call = _ToolCall(len(self._calls), len(self._calls) if index is None else index)
                self._calls.append(call)
            added.append((call.number, call.add(delta)))
        return added

    def name_of(self, number: int) -> str:
        """Return the name of the tool of a call, as far as it has come."""
        return self._calls[number].tool_name

    def id_of(self, number: int) -> str:
        """Return the id of a call; empty if none has come."""
        return str(self._calls[number].id or "")

    def whole(self) -> list[JsonObject]:
        """Return the calls in the order of their indexes."""
        return [call.whole() for call in sorted(self._calls, key=lambda call: call.index)]

    def _with_id(self, call_id: object) -> _ToolCall | None:
        return next((call for call in reversed(self._calls) if call_id and call.id == call_id), None)


def _index_of(delta: JsonObject) -> int | None:
    """Return the index of a call, which may be digits in a text; None where it has none that can be read."""
    try:
        return msgspec.convert(delta.get("index"), int | None, strict=False)
    except msgspec.ValidationError:
        return None


def _continued(calls: list[_ToolCall], delta: JsonObject, index: int | None) -> _ToolCall | None:
    """Return the call that `delta` continues: the latest with its index, unless it begins another one."""
    latest = next((call for call in reversed(calls) if index is None or call.index == index), None)
    return None if latest is None or latest.is_other(delta) else latest


class _ToolCall:
    """Tool call, from the deltas that have come."""

    def __init__(self, number: int, index: int) -> None:
        self.number = number
        self.index = index
        self.id: object = None
        self._members = JsonObject()
        self._functions = dict[str, ToolFunction]()

    @property
    def tool_name(self) -> str:
        """Name of the tool, as far as it has come."""
        return "".join(function.name for function in self._functions.values())

    def add(self, delta: JsonObject) -> str:
        """Add a delta of this call, and return the text that it adds."""
        self.id, more = self.id or delta.get("id"), ""
        for name, value in delta.items():
            if name in _KINDS and isinstance(value, dict):
                more += self._functions.setdefault(name, ToolFunction()).add(cast("JsonObject", value))
            elif name == "id":
                self._members[name] = self.id
            elif name != "index" and (value or name not in self._members):
                self._members[name] = value
        return more

    def is_other(self, delta: JsonObject) -> bool:
        """Return True if `delta` begins another call, although its index does not tell so."""
        has_other_id = bool(delta.get("id")) and bool(self.id)
        is_headed = has_other_id or bool(delta.get("type") and self._members.get("type"))
        for kind, function in self._functions.items():
            if isinstance(value := delta.get(kind), dict):
                return function.is_other(cast("JsonObject", value), has_other_id=has_other_id, is_headed=is_headed)
        return False

    def whole(self) -> JsonObject:
        """Return the call as it is in a whole answer."""
        return self._members | {name: function.whole() for name, function in self._functions.items()}


class ToolFunction:
    """Name of a tool with the text that it is called with; also the `function_call` of older completions.

    The text is a list of pieces, because appending to a str n times takes n² time.
    """

    def __init__(self) -> None:
        self.name = ""
        """Name of the tool, as far as it has come."""
        self._members = JsonObject()
        self._pieces = list[str]()

    def add(self, delta: object) -> str:
        """Add a delta, and return the text that it adds; a name comes whole, again, or in pieces before the text.

        Raises ValueError if the delta is no object.
        """
        is_name_complete, count = bool(self.name and self._pieces), len(self._pieces)
        for name, value in msgspec.convert(delta, JsonObject).items():
            if name in _GROWING:
                self._members[name] = ""
                self._pieces += [value if isinstance(value, str) else msgspec.json.encode(value).decode()] * bool(value)
            elif name == "name" and isinstance(value, str):
                if value != self.name and not is_name_complete:
                    self.name += value
                self._members[name] = self.name
            elif value or name not in self._members:
                self._members[name] = value
        return "".join(self._pieces[count:])

    def is_other(self, delta: JsonObject, *, has_other_id: bool, is_headed: bool) -> bool:
        """Return True if `delta` begins another call than this one.

        Args:
            delta: The next delta.
            has_other_id: Its call has another id.
            is_headed: Its call has another id, or its type once more.
        """
        name, has_text = delta.get("name"), any(delta.get(each) for each in _GROWING)
        if not name or not self.name:
            return False
        if name == self.name:
            return has_other_id if not self._pieces else self._is_whole() and (has_text or has_other_id)
        return bool(self._pieces) or has_text or is_headed

    def whole(self) -> JsonObject:
        """Return the function as it is in a whole answer."""
        return {name: "".join(self._pieces) if name in _GROWING else value for name, value in self._members.items()}

    def _is_whole(self) -> bool:
        if not self._pieces[-1].endswith("}"):
            return False
        try:
            msgspec.json.decode("".join(self._pieces), type=JsonObject)
        except (ValueError, RecursionError):
            return False
        return True
