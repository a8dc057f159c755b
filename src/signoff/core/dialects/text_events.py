"""Events of a chat that equal an earlier one but for their text: nearly all events of an answer.

Comparing the bytes around the text takes a tenth of the time of parsing an event.
"""

import re
from typing import NamedTuple

import msgspec

# A larger event is no delta, and a search for its text would take long.
MAX_EVENT_BYTES = 64 * 1024
_CONTENT = re.compile(rb'"content":[ ]?("[^"\\]*(?:\\.[^"\\]*)*")')
_TEXT = msgspec.json.Decoder(str)


class TextEvent(NamedTuple):
    """An event, as the bytes before and after the JSON string of its text."""

    before: bytes
    """Bytes up to the opening quote of the text."""
    after: bytes
    """Bytes from the end of the text on."""

    def text_in(self, event: bytes) -> str | None:
        """Return the text of an event that equals this one but for the text; None for any other event.

        What stands between the same bytes is one JSON string, so it can neither end early nor have members.
        """
        if not (event.startswith(self.before) and event.endswith(self.after)):
            return None
        try:
            return _TEXT.decode(event[len(self.before) : -len(self.after)])
        except ValueError:
            return None


def text_event(event: bytes) -> TextEvent | None:
    """Return an event of a chat as a TextEvent.

    Return None if it is large, or has several lines, an error, or not just one `content`.
    """
    is_line = event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event
    is_chat = b'"choices"' in event and b'"error"' not in event and event.count(b'"content"') == 1
    if not (len(event) <= MAX_EVENT_BYTES and is_line and is_chat):
        return None
    match = _CONTENT.search(event)
    return None if match is None else TextEvent(event[: match.start(1)], event[match.end(1) :])
