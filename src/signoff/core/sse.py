"""Server-sent events as bytes (WHATWG HTML, section 9.2): framing them, and finding where one ends."""

from __future__ import annotations

import re

from signoff.errors import ModelGarbled

DONE = b"data: [DONE]\n\n"
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END = re.compile(rb"\r\n|\n|\r")


def event(data: bytes) -> bytes:
    """One event that carries `data`, which has no line breaks."""
    return b"data: " + data + b"\n\n"


def comment(text: bytes) -> bytes:
    """A line that clients ignore; it keeps an idle connection open."""
    return b": " + text + b"\n\n"


def data_of(raw: bytes) -> bytes:
    """The data of one raw event; empty for a comment."""
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2:
        return raw[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in _LINE_END.split(raw) if line.startswith(b"data:")]
    return b"\n".join(lines)


class Splitter:
    """Cuts a byte stream into whole raw events, blank line included, so that they can pass on unchanged."""

    def __init__(self, max_event_bytes: int) -> None:
        self._rest = b""
        self._max_event_bytes = max_event_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are complete now. Raises ModelGarbled when one outgrows the bound."""
        buffer, start, events = self._rest + data, 0, list[bytes]()
        # Only what is new can complete a blank line, which has four bytes at most.
        for end in _BLANK_LINE.finditer(buffer, max(0, len(self._rest) - 3)):
            events.append(buffer[start : end.end()])
            start = end.end()
        self._rest = buffer[start:]
        if len(self._rest) > self._max_event_bytes:
            raise ModelGarbled("The model sent an event that is too large.")
        return events

    @property
    def rest(self) -> bytes:
        """What came after the last whole event."""
        return self._rest
