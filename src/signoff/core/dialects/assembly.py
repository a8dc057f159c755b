"""Assembly of the events of a stream into the whole answer that they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import StringIO
from typing import Any, cast

import msgspec

from signoff.core import sse
from signoff.core.decode import JsonObject, as_object
from signoff.core.dialects import messages
from signoff.core.dialects.response_stream import ResponseStream, is_response_event
from signoff.core.dialects.surrogates import decode_with_surrogates, encode_with_surrogates, has_surrogates
from signoff.core.dialects.text_events import text_event
from signoff.core.dialects.tool_calls import ToolCalls, ToolFunction


def assemble(events: Iterable[bytes]) -> tuple[bytes, int]:
    """Return the answer that `events` add up to, of any known form, and the number of events with content.

    Raises:
        ValueError: an event is not JSON, or has a member of an unexpected type.
        RecursionError: an event is nested too deeply.
    """
    completion, response, pieces, is_plain = _Completion(), ResponseStream(), 0, True
    message, latest = list[JsonObject](), None
    for event in events:
        is_plain = is_plain and not has_surrogates(event)
        if latest is not None and (text := latest.text_in(event)) is not None:
            completion.write(text)
            pieces += bool(text)
            continue
        data, latest = sse.data_of(event), None
        if not data or data == b"[DONE]":
            continue
        piece = msgspec.convert(decode_with_surrogates(data), JsonObject)
        pieces += is_content(piece)
        if piece.get("type") in messages.KEEPALIVES:
            continue
        if is_response_event(piece):
            response.add(piece)
        elif messages.is_message_event(piece):
            message.append(piece)
        else:
            latest = text_event(event) if completion.add(piece) else None
    whole = response.whole() if response.has_begun else completion.whole()
    if message:
        whole = messages.assemble(message)
    if is_plain:
        return msgspec.json.encode(whole, enc_hook=_encode_growing), pieces
    return encode_with_surrogates(whole, default=_encode_growing), pieces


def decode_payloads(events: Iterable[bytes]) -> Iterator[Any]:
    """Yield the payloads of events; leave out comments, `[DONE]`, and what is not JSON, such as a cut event."""
    for event in events:
        try:
            yield decode_with_surrogates(sse.data_of(event))
        except (ValueError, RecursionError):
            continue


def is_content(event: Any) -> bool:
    """Return True if the payload of an event has more of a text or of a call, which is about one token."""
    match event:
        case {"choices": list()}:
            choices = cast("list[object]", event["choices"])
            return any(_has_content(cast("JsonObject", choice)) for choice in choices if isinstance(choice, dict))
        case {"type": str() as kind}:
            return kind.endswith((".delta", "_block_delta"))
        case _:
            return False


def _has_content(choice: JsonObject) -> bool:
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(value for name, value in cast("JsonObject", delta).items() if name != "role")
    return bool(choice.get("text"))


class _Completion:
    """A chat completion or a text completion, from the events that have come.

    Growing texts are StringIOs until the end, because appending to a str n times takes n² time.
    """

    def __init__(self) -> None:
        self._members = JsonObject()
        self._choices = dict[int, JsonObject]()
        self._content = StringIO()

    def add(self, piece: JsonObject) -> bool:
        """Add the payload of an event; return True if the same event with another text would add that text alone.

        Raises ValueError if it is not one of a completion.
        """
        choices = msgspec.convert(piece.pop("choices", None) or [], list[JsonObject])
        for choice in choices:
            index = msgspec.convert(choice.get("index") or 0, int)
            whole = self._choices.setdefault(index, {})
            _merge_members(whole, {name: value for name, value in choice.items() if name in _GROWING})
            _replace_members(whole, {name: value for name, value in choice.items() if name not in _GROWING})
        _replace_members(self._members, piece)
        return len(choices) == 1 and _adds_text_alone(choices[0]) and self._takes_text(choices[0])

    def write(self, text: str) -> None:
        """Add the text of an event that equals the latest one but for its text, for which `add` has returned True."""
        self._content.write(text)

    def _takes_text(self, choice: JsonObject) -> bool:
        """Return True if texts can be written to the content of a choice; from now on, `write` does so."""
        delta: JsonObject = self._choices[choice.get("index") or 0]["delta"]
        if isinstance(delta["content"], str):
            text, delta["content"] = delta["content"], StringIO()
            delta["content"].write(text)
        content = delta["content"]
        if isinstance(content, StringIO):
            self._content = content
        return content is self._content

    def whole(self) -> JsonObject:
        """Return the whole completion."""
        kind = "text_completion" if any("text" in choice for choice in self._choices.values()) else "chat.completion"
        choices = [_as_whole_choice(self._choices[index]) for index in sorted(self._choices)]
        name = str(self._members.get("object") or kind).removesuffix(".chunk")
        return self._members | {"object": name, "choices": choices}


def _adds_text_alone(choice: JsonObject) -> bool:
    """Return True if a choice has a text in its delta, and no other member to which events append."""
    delta = choice.get("delta")
    if not isinstance(delta, dict) or choice.get("text") is not None or choice.get("logprobs") is not None:
        return False
    members = cast("JsonObject", delta)
    others = (value for name, value in members.items() if name not in {"content", "role"})
    return isinstance(members.get("content"), str) and all(value is None for value in others)


def _as_whole_choice(choice: JsonObject) -> JsonObject:
    """Convert a choice that was merged from events to the form that it has in a whole answer."""
    if "delta" not in choice:
        return choice
    rest = {name: value for name, value in choice.items() if name != "delta"}
    delta = msgspec.convert(choice["delta"] or {}, JsonObject)
    # Some servers send the message itself in an event.
    return rest | {"message": {"role": "assistant", "content": None} | as_object(choice.get("message")) | delta}


# Members of a choice whose values are appended to, and members inside them whose texts are replaced instead.
_GROWING = {"delta", "logprobs", "text"}
_REPLACED = {"role", "id", "type", "format"}
# Members with calls of tools: those of today's completions, and those of older ones.
_CALLS = {"tool_calls": ToolCalls, "function_call": ToolFunction}
# Types of blocks of which servers send one in pieces.
_GROWING_BLOCKS = {"text", "thinking", "reasoning"}


def _replace_members(whole: JsonObject, more: JsonObject) -> None:
    """Set the members of `more` in `whole`, in place; an empty value replaces none, also within a usage."""
    for name, value in more.items():
        if name == "usage" and isinstance(value, dict) and isinstance(whole.get(name), dict):
            _replace_members(whole[name], cast("JsonObject", value))
        elif value or name not in whole:
            whole[name] = value


def _merge_members(whole: JsonObject, more: JsonObject) -> None:
    """Merge `more` into `whole`, in place."""
    for name, value in more.items():
        whole[name] = _merge(name, whole.get(name), value)


def _merge(name: str, earlier: Any, value: Any) -> Any:
    """Return the value of a member after a delta: append to texts, lists and objects, replace others unless empty."""
    if name in _CALLS and (value or isinstance(value, list)):
        calls = earlier or _CALLS[name]()
        calls.add(cast("object", value))
        return calls
    match earlier, value:
        case None | dict(), dict():
            whole = cast("JsonObject", earlier or {})
            _merge_members(whole, cast("JsonObject", value))
            return whole
        case StringIO(), str():
            earlier.write(value)
            return earlier
        case str(), str() if name not in _REPLACED:
            text = StringIO()
            text.write(earlier + value)
            return text
        case (list(), list() | str()) | (str() | StringIO(), list()):
            return _merge_items(_as_blocks(cast("_Blocks", earlier)), _as_blocks(cast("_Blocks", value)))
        case _:
            return value if earlier is None else value or earlier


_Blocks = list[Any] | str | StringIO


def _as_blocks(value: _Blocks) -> list[Any]:
    """Return a text as a list of one block, or of none if it is empty; a list is one already."""
    if isinstance(value, list):
        return value
    text = value if isinstance(value, str) else value.getvalue()
    return [{"type": "text", "text": text}] if text else []


def _merge_items(items: list[Any], more: list[Any]) -> list[Any]:
    """Merge `more` into `items`, in place: an item continues the one with its index, a text block the last block."""
    for item in more:
        earlier = next((old for old in reversed(items) if _continues(old, item)), None) if _has_index(item) else None
        if earlier is None and items and _is_same_block(items[-1], item):
            earlier = items[-1]
        if earlier is None:
            items.append(item)
        else:
            _merge_members(earlier, item)
    return items


def _has_index(item: object) -> bool:
    return isinstance(item, dict) and "index" in item


def _continues(old: Any, item: JsonObject) -> bool:
    if not _has_index(old) or old["index"] != item["index"]:
        return False
    return item.get("id") in (None, "", old.get("id")) or not old.get("id")


def _is_same_block(old: Any, item: Any) -> bool:
    match old, item:
        case {"type": str() as kind}, {"type": str() as other}:
            return kind == other and kind in _GROWING_BLOCKS and not _has_index(item)
        case _:
            return False


def _encode_growing(value: Any) -> Any:
    return value.getvalue() if isinstance(value, StringIO) else value.whole()
