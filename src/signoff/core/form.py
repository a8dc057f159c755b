"""Forms with files (`multipart/form-data`, RFC 7578), read in the only way that all parsers agree on.

`python-multipart` splits the form. Forms that parsers of other languages split differently are refused: a second
boundary, text before the first part, a part whose header has an unusual form, or a boundary within a file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser

from signoff.errors import BadRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

    from signoff.core.binary import BinaryBody

# Fields that Signoff reads: each may occur once, in this spelling.
READ_FIELDS = ("model", "stream")
MAX_PARTS = 1000
# RFC 2046, section 5.1.1, without the characters that need quotes in some parsers.
_BOUNDARY = r"[A-Za-z0-9'+_.=:-]{1,70}"
_CONTENT_TYPE = re.compile(
    rf'multipart/form-data(?: *; *charset="?utf-8"?)? *; *boundary=(?:"({_BOUNDARY})"|({_BOUNDARY}))', re.IGNORECASE
)
# As browsers and HTTP libraries write it: they replace quotes and line breaks in names, and use no backslashes.
_VALUE = r'"[^"\\\x00-\x1f\x7f]*"'
_DISPOSITION = re.compile(
    rf"form-data; ?name=(?P<name>{_VALUE}|[\w.-]+)(?:; ?filename=(?:{_VALUE}|[\w.-]+))?"
    rf"(?:; ?filename\*=[\w'%.!#$&+^`|~-]+)?",
    re.IGNORECASE,
)


class FormField(NamedTuple):
    """A field or file of a form."""

    name: str
    """Name of the field."""
    span: slice
    """Position of its data in the content of the form."""


def is_form(content_type: str) -> bool:
    """Return True if a body of this type has parts."""
    return content_type.strip().lower().startswith("multipart/")


def fields_of(binary: BinaryBody) -> dict[str, str]:
    """Return the fields READ_FIELDS of a form, and check that all parsers read the same. Raises BadRequest.

    A body of another type has no fields.
    """
    if not is_form(binary.content_type):
        return {}
    parts = split_form(binary)
    names = [part.name for part in parts]
    for name in names:
        folded = name.strip().upper().casefold()
        if folded in READ_FIELDS and (name != folded or names.count(name) > 1):
            raise BadRequest(f"The field `{folded}` must occur once, in exactly this spelling (got {name!r}).")
    return {part.name: binary.content[part.span].decode(errors="replace") for part in parts if part.name in READ_FIELDS}


def with_field(binary: BinaryBody, name: str, text: str) -> bytes:
    """Return the content of a form with `text` in its field `name`, if it has that field; all other bytes stay.

    A body of another type has no fields. Raises BadRequest if parsers could differ about the form.
    """
    if not is_form(binary.content_type):
        return binary.content
    span = next((part.span for part in split_form(binary) if part.name == name), None)
    if span is None:
        return binary.content
    return binary.content[: span.start] + text.encode() + binary.content[span.stop :]


def split_form(binary: BinaryBody) -> list[FormField]:
    """Return the fields and files of a form. Raises BadRequest if parsers could differ about them."""
    content, boundary = binary.content, boundary_of(binary.content_type)
    delimiter = b"--" + boundary
    reader = _Reader()
    try:
        MultipartParser(boundary, reader.callbacks()).write(content)
    except MultipartParseError as error:
        raise BadRequest(f"The form is not valid `multipart/form-data`: {error}.") from None
    if not reader.is_complete or not content.startswith(delimiter) or not content.rstrip().endswith(delimiter + b"--"):
        raise BadRequest("The form must begin with its boundary, and end with it and `--`.")
    if not content.count(delimiter) - 1 == content.count(delimiter + b"\r\n") == len(reader.parts):
        raise BadRequest("The form has its boundary within a part; choose another boundary.")
    return reader.parts


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that the type of a form names. Raises BadRequest unless it has exactly this parameter."""
    match = _CONTENT_TYPE.fullmatch(content_type.strip())
    if match is None:
        raise BadRequest(
            "`Content-Type` of a form must be `multipart/form-data; boundary=B`, where B has 1 to 70 letters, digits "
            f"or characters of '+_.=:- and the only other parameter is `charset=utf-8` (got {content_type[:200]!r})."
        )
    return (match[1] or match[2]).encode()


class _Reader:
    """Reader of the parts of a form, fed by the callbacks of a parser that gets the whole form as one buffer."""

    def __init__(self) -> None:
        self.parts = list[FormField]()
        self.is_complete = False
        self._dispositions = list[str]()
        self._field = b""
        self._value = b""
        self._start: int | None = None
        self._stop = 0

    def callbacks(self) -> MultipartCallbacks:
        """Return the callbacks for the parser."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._read_field,
            "on_header_value": self._read_value,
            "on_header_end": self._end_header,
            "on_part_data": self._read_data,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        self._dispositions, self._start, self._stop = [], None, 0

    def _read_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _read_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        field, value, self._field, self._value = self._field, self._value, b"", b""
        if field.lower() == b"content-disposition":
            self._dispositions.append(value.decode(errors="replace").strip())

    def _read_data(self, _data: bytes, start: int, end: int) -> None:
        self._start = start if self._start is None else self._start
        self._stop = end

    def _end(self) -> None:
        match = _DISPOSITION.fullmatch(self._dispositions[0]) if len(self._dispositions) == 1 else None
        if match is None:
            raise BadRequest(
                'Each part of a form must have one header like `Content-Disposition: form-data; name="file"; '
                f'filename="a.wav"` (got {self._dispositions[:2]}).'
            )
        if len(self.parts) >= MAX_PARTS:
            raise BadRequest(f"A form must have at most {MAX_PARTS} parts.")
        start = self._start or 0
        self.parts.append(FormField(match["name"].strip('"'), slice(start, max(start, self._stop))))

    def _complete(self) -> None:
        self.is_complete = True
