"""Reader of the events of a chat stream, for translations to the streams of other APIs."""

from typing import Literal, NamedTuple

import msgspec

from signoff.core import sse
from signoff.core.decode import JsonObject
from signoff.core.dialects.chat_answer import ChatEnding, call_members, content_text
from signoff.core.dialects.surrogates import decode_with_surrogates
from signoff.core.dialects.tool_calls import ToolCalls
from signoff.errors import ModelGarbled


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


class ChatStreamReader:
    """Reader of the first choice of a chat stream. `end` holds what has come about its end."""

    def __init__(self) -> None:
        self.end = ChatEnding()
        self._calls = ToolCalls()
        self._begun = 0
        self._half = ""

    @property
    def has_calls(self) -> bool:
        """True if a tool is called."""
        return self._calls.count > 0

    def feed(self, event: bytes) -> list[ChatPiece]:
        """Return the pieces of one server-sent event; none for `[DONE]`, a comment, or another choice.

        Raises ModelGarbled if the event is not one of a chat.
        """
        data = sse.data_of(event)
        if not data or data.startswith(b"[DONE]"):
            return []
        try:
            chunk = msgspec.convert(decode_with_surrogates(data), JsonObject)
            self.end.add_usage(chunk)
            choices = msgspec.convert(chunk.get("choices") or [], list[JsonObject])
            return [piece for choice in choices if not choice.get("index") for piece in self._pieces(choice)]
        except (ValueError, RecursionError) as error:
            raise ModelGarbled(f"The model's answer is not a stream of chat events: {error}") from None

    def finish(self) -> list[ChatPiece]:
        """Return the pieces that are left at the end of the stream."""
        return self._begin_calls(self._calls.count)

    def _pieces(self, choice: JsonObject) -> list[ChatPiece]:
        self.end.add_choice(choice)
        # Some servers send the message itself in an event.
        delta = msgspec.convert(choice.get("delta") or choice.get("message") or {}, JsonObject)
        pieces = list[ChatPiece]()
        if text := self._join_halves(content_text(delta.get("content"))):
            pieces.append(ChatPiece("text", text))
        if isinstance(refusal := delta.get("refusal"), str) and refusal:
            pieces.append(ChatPiece("refusal", refusal))
        for number, more in self._calls.add(call_members(delta)):
            # The name may come in pieces, but not after the arguments have begun, or another call.
            pieces += self._begin_calls(number)
            if more := self._join_halves(more):
                pieces += self._begin_calls(number + 1)
                pieces.append(ChatPiece("arguments", more, number))
        return pieces

    def _begin_calls(self, end: int) -> list[ChatPiece]:
        """Return the beginnings of the calls before number `end` that have not begun yet."""
        numbers, self._begun = range(self._begun, end), max(self._begun, end)
        return [ChatPiece("call", self._calls.name_of(number), number, self._calls.id_of(number)) for number in numbers]

    def _join_halves(self, text: str) -> str:
        """Return `text` after the half of a character that came before; its own last half waits for the next text."""
        if not self._half and text.isascii():
            return text
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
