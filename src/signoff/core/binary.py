"""A parcel: bytes that are no JSON (a form with files, sound, a picture) in JSON, which is what a job keeps.

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
# It becomes a header, and whoever wrote it may want to add lines of their own.
_KIND = re.compile(r"[\x20-\x7e]+")


class BinaryBody(msgspec.Struct, frozen=True):
    """Bytes, and what they are. In JSON they are in base64."""

    content_type: str
    content: bytes


class _Encoded(msgspec.Struct):
    binary: BinaryBody = msgspec.field(name="parcel")


def encode_binary(binary: BinaryBody) -> bytes:
    """The parcel as JSON."""
    return msgspec.json.encode(_Encoded(binary))


def decode_binary(body: bytes) -> BinaryBody | None:
    """The parcel in `body`, where that is one."""
    if not body.startswith(_START):
        return None
    try:
        binary = msgspec.json.decode(body, type=_Encoded).binary
    except (ValueError, RecursionError):
        return None
    return binary if _KIND.fullmatch(binary.content_type) else None


class _Described(msgspec.Struct):
    content_type: str
    content: msgspec.Raw


class _DescribedBody(msgspec.Struct):
    binary: _Described = msgspec.field(name="parcel")


def describe_binary(body: bytes) -> str | None:
    """The kind and the size of the parcel in `body`, in words, where that is one."""
    if not body.startswith(_START):
        return None
    try:
        binary = msgspec.json.decode(body, type=_DescribedBody).binary
    except (ValueError, RecursionError):
        return None
    if not _KIND.fullmatch(binary.content_type):
        return None
    base64 = bytes(binary.content).strip(b'"')
    return f"{binary.content_type.partition(';')[0]}, {len(base64.rstrip(b'=')) * 3 // 4} bytes"


def form_field(binary: BinaryBody, name: str) -> str | None:
    """Return the text of the first field called `name` of a form, or None where there is none."""
    span = _field_span(binary, name)
    return None if span is None else binary.content[span].decode(errors="replace")


def with_form_field(binary: BinaryBody, name: str, text: str) -> BinaryBody:
    """Return the form with `text` as the field `name`, where it has that field. Every other byte stays."""
    span = _field_span(binary, name)
    if span is None or binary.content[span] == text.encode():
        return binary
    content = binary.content[: span.start] + text.encode() + binary.content[span.stop :]
    return BinaryBody(binary.content_type, content)


def _field_span(binary: BinaryBody, name: str) -> slice | None:
    """Return where the text of the first field called `name` stands in the content of a form."""
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
