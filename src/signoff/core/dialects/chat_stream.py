"""Reader of the events of a chat stream, for translations to the streams of other APIs."""

from typing import Literal, NamedTuple, cast

import msgspec

from signoff.core import sse
from signoff.core.decode import JsonObject, as_object
from signoff.core.dialects.surrogates import decode_with_surrogates


class ChatPiece(NamedTuple):
    """A piece of the first choice of a chat stream."""

    kind: Literal["text", "refusal", "call", "arguments"]
    """`call` begins a call of a tool, `arguments` continues it."""
    text: str
    """More of the text or of the arguments; the name of the tool that is called."""
    number: int = 0
    """Number of the call, from 0."""
    call_id: str = ""
    """Id of the call that begins; empty if the upstream gave none."""


class _Call(msgspec.Struct):
    """A call of a tool that has begun."""

    index: object
    call_id: str
    name: str
    arguments: list[str]


class ChatStreamReader:
    """Reader of the first choice of a chat stream.

    `finish_reason`, `stop_sequence` and `usage` hold what came last; None if nothing has come.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.stop_sequence: str | None = None
        self.usage: JsonObject | None = None
        self.has_calls = False
        self._calls = list[_Call]()
        self._half = ""

    def feed(self, event: bytes) -> list[ChatPiece]:
        """Return the pieces of one server-sent event; none for `[DONE]`, a comment, or another choice.

        Raises ValueError if the event is not one of a chat.
        """
        data = sse.data_of(event)
        if not data or data.startswith(b"[DONE]"):
            return []
        chunk = msgspec.convert(decode_with_surrogates(data), JsonObject)
        self.usage = as_object(chunk.get("usage")) or self.usage
        choices = msgspec.convert(chunk.get("choices") or [], list[JsonObject])
        return [piece for choice in choices if not choice.get("index") for piece in self._pieces(choice)]

    def _pieces(self, choice: JsonObject) -> list[ChatPiece]:
        if isinstance(reason := choice.get("finish_reason"), str):
            self.finish_reason = reason
        if isinstance(stop := choice.get("stop_reason"), str):
            self.stop_sequence = stop
        delta = msgspec.convert(choice.get("delta") or {}, JsonObject)
        pieces = list[ChatPiece]()
        if text := self._join_halves(content_text(delta.get("content"))):
            pieces.append(ChatPiece("text", text))
        if isinstance(refusal := delta.get("refusal"), str) and refusal:
            pieces.append(ChatPiece("refusal", refusal))
        for call in calls_of(delta):
            pieces += self._call_pieces(call)
        return pieces

    def _call_pieces(self, delta: JsonObject) -> list[ChatPiece]:
        """Return the beginning of a call if `delta` is one, and more of its arguments."""
        self.has_calls = True
        function = msgspec.convert(delta.get("function") or {}, JsonObject)
        name, more = str(function.get("name") or ""), str(function.get("arguments") or "")
        call_id, index = str(delta.get("id") or ""), delta.get("index")
        more = self._join_halves(more)
        pieces = list[ChatPiece]()
        number = self._continued(index, call_id, name)
        if number is None:
            number = len(self._calls)
            self._calls.append(_Call(index, call_id, name, []))
            pieces.append(ChatPiece("call", name, number, call_id))
        if more:
            self._calls[number].arguments.append(more)
            pieces.append(ChatPiece("arguments", more, number))
        return pieces

    def _join_halves(self, text: str) -> str:
        """Return `text` after the half of a character that came before; its own last half waits for the next text."""
        if not self._half and text.isascii():
            return text
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _continued(self, index: object, call_id: str, name: str) -> int | None:
        """Return the number of the call that a delta continues; None if it begins a call.

        It continues the one with its id, else the last one with its index, else the last one. A new id begins a call,
        and so does another name after whole arguments.
        """
        same = [number for number, call in enumerate(self._calls) if index is None or call.index == index]
        if call_id:
            known = (number for number in reversed(same) if self._calls[number].call_id in {call_id, ""})
            return next(known, None)
        if not same:
            return None
        last = self._calls[same[-1]]
        begins = bool(name) and name != last.name and _is_object("".join(last.arguments))
        return None if begins else same[-1]


def calls_of(message: JsonObject) -> list[JsonObject]:
    """Return the calls of tools in a message or a delta, also one in the earlier form `function_call`."""
    calls = msgspec.convert(message.get("tool_calls") or [], list[JsonObject])
    if isinstance(call := message.get("function_call"), dict):
        calls.append({"index": 0, "function": call})
    return calls


def content_text(content: object) -> str:
    """Return the text of a content: a text, or the texts of its blocks."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    blocks = [cast("JsonObject", block) for block in cast("list[object]", content) if isinstance(block, dict)]
    return "".join(str(block["text"]) for block in blocks if isinstance(block.get("text"), str))


def _is_object(arguments: str) -> bool:
    try:
        msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return False
    return True
