"""Server-sent events as bytes (WHATWG HTML, section 9.2): framing events, and splitting a stream into events."""

import re

from signoff.core.decode import without_mark
from signoff.errors import ModelGarbled

CONTENT_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
# Lines end in \n, in \r\n, or in \r alone; the first two may be mixed.
_BLANK_LINE = re.compile(rb"\n\r?\n|\r\r")
_MAX_BLANK_LINE_LENGTH = 3
_LINE_END = re.compile(rb"\r\n|\n|\r")


def event(data: bytes) -> bytes:
    """Return an event with `data`, which must not contain line breaks."""
    return b"data: " + data + b"\n\n"


def comment(text: bytes) -> bytes:
    """Return a comment, which clients ignore; it keeps an idle connection open."""
    return b": " + text + b"\n\n"


def data_of(raw: bytes) -> bytes:
    """Return the data of one raw event; empty for a comment."""
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:
        return raw[6:-2]
    lines = (line.partition(b":") for line in _LINE_END.split(without_mark(raw)))
    return b"\n".join(value.removeprefix(b" ") for name, _, value in lines if name == b"data")


def name_of(raw: bytes) -> bytes:
    """Return the name of one raw event; empty if it has none."""
    if b"event:" not in raw:
        return b""
    lines = (line.partition(b":") for line in _LINE_END.split(without_mark(raw)))
    return next((value.strip() for name, _, value in lines if name == b"event"), b"")


class EventSplitter:
    """A splitter of a byte stream into raw events, with their blank lines, so that they can pass on unchanged."""

    def __init__(self, max_event_bytes: int) -> None:
        self._rest = bytearray()
        self._max_event_bytes = max_event_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that `data` completes. Raises ModelGarbled if an event exceeds `max_event_bytes`."""
        if self._rest or b"\r" in data:
            events = self._continue(data)
        else:  # as nearly all data
            *whole, rest = data.split(b"\n\n")
            events = [each + b"\n\n" for each in whole]
            self._rest += rest
        if max(len(self._rest), *map(len, events), 0) > self._max_event_bytes:
            raise ModelGarbled(f"The model sent an event of more than {self._max_event_bytes} bytes.", retryable=False)
        return events

    def _continue(self, data: bytes) -> list[bytes]:
        """Return the events that `data` completes after the rest of the data before."""
        searched, start, events = len(self._rest), 0, list[bytes]()
        self._rest += data
        # Only new data can complete a blank line.
        for blank in _BLANK_LINE.finditer(self._rest, max(0, searched + 1 - _MAX_BLANK_LINE_LENGTH)):
            events.append(bytes(self._rest[start : blank.end()]))
            start = blank.end()
        del self._rest[:start]
        return events

    @property
    def rest(self) -> bytes:
        """Bytes after the last complete event."""
        return bytes(self._rest)
