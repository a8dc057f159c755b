"""Form with one file (`multipart/form-data`, RFC 7578) that is read piece by piece, whatever its size."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from signoff.core.form import boundary_of
from signoff.errors import BadRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 16
MAX_FIELD_BYTES = 4096
MAX_HEADER_BYTES = 8192
FILE = "file"
_ENCODED = re.compile(r"(?i)utf-8'[^']*'(.*)")


class UploadForm:
    """Reader of a form. `fields` has its plain fields, and `filename` the name of its file (None before it comes).

    Raises:
        BadRequest: `content_type` is not that of a form.
    """

    def __init__(self, content_type: str) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.is_complete = False
        self._pieces = list[bytes]()
        self._names = set[str]()
        self._name = ""
        self._value = bytearray()
        self._header = bytearray()
        self._header_value = bytearray()
        self._disposition: bytes | None = None
        self._is_file = False
        self._parser = MultipartParser(boundary_of(content_type), self._callbacks())

    def feed(self, data: bytes) -> list[bytes]:
        """Read the next piece of the form, and return the pieces of the file in it. Raises BadRequest."""
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise BadRequest(f"The form is not valid `multipart/form-data`: {error}.") from None
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> None:
        """Check that the form is complete. Raises BadRequest."""
        if not self.is_complete:
            raise BadRequest("The form must end with its boundary and `--`.")

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._read_header,
            "on_header_value": self._read_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": self._read_data,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        if len(self._names) >= MAX_PARTS:
            raise BadRequest(f"The form must have at most {MAX_PARTS} parts.")
        self._disposition, self._value, self._is_file = None, bytearray(), False

    def _read_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check_header()

    def _read_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header) + len(self._header_value) > MAX_HEADER_BYTES:
            raise BadRequest(f"A header of a part of the form must have at most {MAX_HEADER_BYTES} bytes.")

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header, self._header_value = bytearray(), bytearray()

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if name is None:
            raise BadRequest('Each part of the form must have a header `Content-Disposition: form-data; name="…"`.')
        self._name = name.decode(errors="replace")
        if self._name in self._names:
            raise BadRequest(f"The field `{self._name[:100]}` must occur once.")
        self._names.add(self._name)
        self._is_file = self._name == FILE
        if self._is_file:
            self.filename = _filename_of(options) or "file"

    def _read_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._pieces.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise BadRequest(f"The field `{self._name[:100]}` must have at most {MAX_FIELD_BYTES} bytes.")

    def _end(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._value.decode(errors="replace")

    def _complete(self) -> None:
        self.is_complete = True


def _filename_of(options: dict[bytes, bytes]) -> str:
    """Return the name of the file; one with other characters than ASCII may be encoded (RFC 5987)."""
    encoded = options.get(b"filename*", b"").decode("latin-1")
    if (match := _ENCODED.fullmatch(encoded)) is not None:
        return unquote(match[1])
    return options.get(b"filename", b"").decode(errors="replace")
