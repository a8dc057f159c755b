"""Bodies that are not JSON (a form with files, audio, an image) in a JSON envelope, which a job can store.

Fields of forms (RFC 7578) are read with `python-multipart`.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import msgspec
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_START = b'{"parcel":'
# A content type becomes a header: control characters would let a caller add headers.
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]+")


class BinaryBody(msgspec.Struct, frozen=True):
    """A body of any content type."""

    content_type: str
    """Value of the `Content-Type` header."""
    content: bytes
    """The body; base64 in JSON."""


class _Encoded(msgspec.Struct):
    binary: BinaryBody = msgspec.field(name="parcel")


def encode_binary(binary: BinaryBody) -> bytes:
    """Encode as JSON: `{"parcel": {"content_type", "content"}}`."""
    return msgspec.json.encode(_Encoded(binary))


def decode_binary(body: bytes) -> BinaryBody | None:
    """Decode `body`; return None if it is not an encoded `BinaryBody`."""
    if not body.startswith(_START):
        return None
    try:
        binary = msgspec.json.decode(body, type=_Encoded).binary
    except (ValueError, RecursionError):
        return None
    return binary if _CONTENT_TYPE.fullmatch(binary.content_type) else None


class _Described(msgspec.Struct):
    content_type: str
    content: msgspec.Raw


class _DescribedBody(msgspec.Struct):
    binary: _Described = msgspec.field(name="parcel")


def describe_binary(body: bytes) -> str | None:
    """Return the type and size of the binary body in `body`, such as `image/png, 70 bytes`; None if there is none."""
    if not body.startswith(_START):
        return None
    try:
        binary = msgspec.json.decode(body, type=_DescribedBody).binary
    except (ValueError, RecursionError):
        return None
    if not _CONTENT_TYPE.fullmatch(binary.content_type):
        return None
    base64 = bytes(binary.content).strip(b'"')
    return f"{binary.content_type.partition(';')[0]}, {len(base64.rstrip(b'=')) * 3 // 4} bytes"


def form_field(binary: BinaryBody, name: str) -> str | None:
    """Return the text of the first field `name` of a form; None if there is none."""
    span = _field_span(binary, name)
    return None if span is None else binary.content[span].decode(errors="replace")


def with_form_field(binary: BinaryBody, name: str, text: str) -> BinaryBody:
    """Return the form with `text` in its field `name`, if it has that field; all other bytes stay."""
    span = _field_span(binary, name)
    if span is None or binary.content[span] == text.encode():
        return binary
    content = binary.content[: span.start] + text.encode() + binary.content[span.stop :]
    return BinaryBody(binary.content_type, content)


def _field_span(binary: BinaryBody, name: str) -> slice | None:
    """Return the position of the text of the first field `name` in the content of a form; None if there is none."""
    kind, options = parse_options_header(binary.content_type)
    boundary = options.get(b"boundary")
    if boundary is None or not kind.startswith(b"multipart/"):
        return None
    search = _FieldSearch(name)
    with contextlib.suppress(MultipartParseError, _FieldFound):
        MultipartParser(boundary, search.callbacks()).write(binary.content)
    return search.span


class _FieldFound(Exception):
    """Signal that the field is complete, and that the rest of the form need not be read."""


class _FieldSearch:
    """A search for one field, fed by the callbacks of a parser that reads the whole form as one buffer."""

    def __init__(self, name: str) -> None:
        self.span: slice | None = None
        self._name = name.encode()
        self._is_disposition = False
        self._is_match = False
        self._start: int | None = None
        self._stop = 0

    def callbacks(self) -> MultipartCallbacks:
        """Return the callbacks for the parser."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._read_field,
            "on_header_value": self._read_value,
            "on_part_data": self._read_data,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._is_match, self._start, self._stop = False, None, 0

    def _read_field(self, data: bytes, start: int, end: int) -> None:
        self._is_disposition = data[start:end].lower() == b"content-disposition"

    def _read_value(self, data: bytes, start: int, end: int) -> None:
        if self._is_disposition:
            self._is_match = parse_options_header(data[start:end])[1].get(b"name") == self._name

    def _read_data(self, data: bytes, start: int, end: int) -> None:
        self._start = start if self._start is None else self._start
        self._stop = end

    def _end(self) -> None:
        if self._is_match:
            self.span = slice(self._start or 0, self._stop)
            raise _FieldFound
