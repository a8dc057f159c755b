"""Items of a long list in a JSON object that comes in pieces, whatever its size.

The text of each item is returned as it was written, because a parser would lose members that occur twice and the form
of numbers. Nothing is validated here: the object is valid JSON if all items are, and if the rest is, which has a `0`
in the place of each item.
"""

import re
from collections.abc import Iterator

import msgspec

from signoff.errors import BadBody, BadRequest, TooLarge

ITEM = b"0"
# No decoder of Python takes more.
MAX_DEPTH = 1000
# Depth between the items of the list.
_IN_LIST = 2
_QUOTE, _BACKSLASH, _COMMA, _LIST = b'"\\,['
_OPENING = b"{["
# Brackets that are passed over as a whole may have others inside, so many levels deep.
_LEVELS = 4


def _passing(plain: bytes, levels: int) -> bytes:
    """Return a pattern for characters of the set `plain`, texts, and brackets with what is in them."""
    inner = rb'"%b"' % _TEXT
    for _ in range(levels):
        inner = rb'"%b"|[{\[]%b[}\]]' % (_TEXT, _sequence(_PLAIN, inner))
    return _sequence(plain, inner)


def _sequence(plain: bytes, inner: bytes) -> bytes:
    # There is one way to match a sequence, so a match that fails takes a time in proportion to its length. The groups
    # are not possessive, as Python 3.11.0 to 3.11.4 match those wrongly.
    return rb"%b(?:(?:%b)%b)*" % (plain, inner, plain)


_TEXT = rb'[^"\\]*+(?:\\.[^"\\]*+)*'
_PLAIN, _PLAIN_IN_LIST = rb'[^"{}\[\]]*+', rb'[^"{}\[\],]*+'
_TO_END_OF_TEXT = re.compile(_TEXT, re.DOTALL)
_TO_TEXT_OR_BRACKET = re.compile(_PLAIN)
# These also stop at a text or a bracket that does not end in the present piece.
_TO_BRACKET = re.compile(_passing(_PLAIN, _LEVELS), re.DOTALL)
_TO_BRACKET_OR_COMMA = re.compile(_passing(_PLAIN_IN_LIST, _LEVELS), re.DOTALL)
_NAME = re.compile(rb'("%b")[ \t\r\n]*:[ \t\r\n]*\[' % _TEXT, re.DOTALL)
_decode_text = msgspec.json.Decoder(str).decode


class ItemReader:
    """Reader of the items of the list `member` of an object.

    Args:
        member: Name of the member of the outermost object.
        max_bytes: Maximum size of an item, and of everything else together.
    """

    def __init__(self, member: str, max_bytes: int) -> None:
        self._member = member
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._item = bytearray()
        self._copied = 0  # bytes of the present piece that are in one of the two
        self._depth = 0
        self._name_at = 0  # position in the rest of the last text of the outermost level
        self._in_text = False
        self._is_escaped = False
        self._in_list = False
        self._has_begun = False
        self.count = 0
        """Number of items so far."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the items that end in the next piece. Raises TooLarge, BadBody, and BadRequest for a second list."""
        place = self._copied = 0
        while (place := self._next(data, place)) < len(data):
            token = data[place]
            if token in _OPENING:
                if self._depth == 1 and token == _LIST:
                    self._keep(data, place + 1)
                    self._in_list = self._begins_list()
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise BadBody(f"The body is not valid JSON: it is nested more than {MAX_DEPTH} levels deep.")
            else:
                if self._in_list and self._depth == _IN_LIST:
                    self._keep(data, place)
                    if (item := self._end_item()) is not None:
                        yield item
                    self._in_list = False
                    self._keep(data, place + 1)
                    self._in_list = token == _COMMA
                self._depth -= token != _COMMA
            place += 1
        self._keep(data, len(data))

    def end(self) -> bytes:
        """Return the object with a `0` in the place of each item, and with the part of an item that has no end."""
        return bytes(self._rest + self._item)

    def _next(self, data: bytes, place: int) -> int:
        """Return the position of the next bracket, or comma after an item; the length of `data` if there is none."""
        while True:
            if self._in_text:
                place = self._end_text(data, place)
            if self._depth <= 1:
                pattern = _TO_TEXT_OR_BRACKET
            else:
                pattern = _TO_BRACKET_OR_COMMA if self._in_list and self._depth == _IN_LIST else _TO_BRACKET
            place = _end_of(pattern, data, place)
            if place == len(data) or data[place] != _QUOTE:
                return place
            self._in_text = True
            if self._depth == 1:
                self._name_at = len(self._rest) + place - self._copied
            place += 1

    def _end_text(self, data: bytes, place: int) -> int:
        """Return the position after the quote that ends a text; the length of `data` if there is none."""
        if self._is_escaped and data:
            self._is_escaped = False
            place += 1
        place = _end_of(_TO_END_OF_TEXT, data, place)
        if place == len(data):
            return place
        if data[place] == _BACKSLASH:  # its other character is in the next piece
            self._is_escaped = True
            return place + 1
        self._in_text = False
        return place + 1

    def _keep(self, data: bytes, place: int) -> None:
        """Keep the bytes before `place`. Raises TooLarge."""
        part = self._item if self._in_list else self._rest
        part += data[self._copied : place]
        self._copied = place
        if len(self._item) > self._max_bytes:
            raise TooLarge(f"`{self._member}.{self.count}` must not be larger than {self._max_bytes} bytes.")
        if len(self._rest) - self.count * len(ITEM + b",") > self._max_bytes:
            raise TooLarge(f"The members beside `{self._member}` must not be larger than {self._max_bytes} bytes.")

    def _begins_list(self) -> bool:
        """Return True if the rest ends with the name of the member and the bracket of its list. Raises BadRequest."""
        match = _NAME.fullmatch(self._rest, self._name_at)
        try:
            is_member = match is not None and _decode_text(match[1]) == self._member
        except ValueError:  # the rest is not JSON, then
            is_member = False
        if is_member and self._has_begun:
            raise BadRequest(f"`{self._member}` must occur once, as parsers differ about a second one.")
        self._has_begun = self._has_begun or is_member
        return is_member

    def _end_item(self) -> bytes | None:
        """Return the text of the item that ends here; None if there is none, as in an empty list."""
        text = bytes(self._item)
        self._item.clear()
        if not text.strip():
            self._rest += text
            return None
        self._rest += ITEM
        self.count += 1
        return text


def _end_of(pattern: re.Pattern[bytes], data: bytes, place: int) -> int:
    match = pattern.match(data, place)
    return place if match is None else match.end()
