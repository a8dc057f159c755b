"""Lines of the input file of a batch: reading them with bounded memory, and checking them.

Source of the form and of the codes: OpenAI's Batch API, "Preparing your batch file" and the errors of its batches.
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from signoff.core.batch import MAX_LINES, BatchError
from signoff.core.decode import without_mark
from signoff.core.dialects.required_members import missing_member
from signoff.core.members import Members, read_members
from signoff.errors import BadRequest

MAX_ERRORS = 100
MAX_CUSTOM_ID_LENGTH = 512
DIGEST_BYTES = 16
_REQUIRED = ("custom_id", "method", "url", "body")


class Line(NamedTuple):
    """A line of a file that is not blank."""

    number: int
    """Number of the line, from 1; blank ones count."""
    end: int
    """Position of the byte after it, and after its line break."""
    content: bytes | None
    """Text of the line; None if it is too long."""


class LineReader:
    """Reader of the lines of a file that comes in pieces. A line that is too long is skipped without being stored."""

    def __init__(self, max_bytes: int, *, next_line: int = 1, next_byte: int = 0) -> None:
        self._max_bytes = max_bytes
        self._number = next_line
        self._position = next_byte
        self._pieces = list[bytes]()
        self._size = 0

    def feed(self, data: bytes) -> Iterator[Line]:
        """Yield the lines that end in the next piece of the file."""
        start = 0
        while (stop := data.find(b"\n", start)) >= 0:
            self._add(data[start:stop])
            self._position += 1
            if (line := self._end_line()) is not None:
                yield line
            start = stop + 1
        self._add(data[start:])

    def end(self) -> Line | None:
        """Return the last line, if it has no line break."""
        return self._end_line()

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        self._position += len(piece)
        if self._size <= self._max_bytes:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def _end_line(self) -> Line | None:
        is_whole, content = self._size <= self._max_bytes, b"".join(self._pieces)
        if self._number == 1:
            content = without_mark(content)
        number, self._number, self._size = self._number, self._number + 1, 0
        self._pieces.clear()
        if not is_whole:
            return Line(number, self._position, None)
        return Line(number, self._position, content) if content.strip() else None


class BatchLine(msgspec.Struct, frozen=True):
    """A line of an input file that was checked."""

    custom_id: str
    """Id that the caller gave the request, unique in its file."""
    body: msgspec.Raw
    """Body of the request, as JSON."""


class _LineFields(msgspec.Struct):
    custom_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    method: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    url: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _CheckedFields(msgspec.Struct):
    custom_id: msgspec.Raw
    body: msgspec.Raw


_decode = msgspec.json.Decoder(_LineFields).decode
_decode_checked = msgspec.json.Decoder(_CheckedFields).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_stream = msgspec.json.Decoder(bool | None).decode


def parse_line(content: bytes) -> BatchLine:
    """Return the request of a line that was checked; of a member that occurs twice, the last one, as in the check.

    Raises ValueError if it is not such a line.
    """
    fields = _decode_checked(content)
    return BatchLine(_decode_text(fields.custom_id), fields.body)


class LineChecker:
    """Checker of all lines of one file: `errors` are their faults, at most MAX_ERRORS."""

    def __init__(self, endpoint: str, max_bytes: int) -> None:
        self._endpoint = endpoint
        self._max_bytes = max_bytes
        self._custom_ids = set[bytes]()
        self.count = 0
        """Number of requests so far."""
        self.model: str | None = None
        """Model of the first request that names one."""
        self.model_line = 0
        """Number of that line."""
        self.errors = list[BatchError]()

    @property
    def is_full(self) -> bool:
        """True if further lines need no check: the list of faults is full, or the file has too many requests."""
        return len(self.errors) >= MAX_ERRORS or self.count > MAX_LINES

    def check(self, line: Line) -> None:
        """Count a line, and add the first fault that it has to `errors`."""
        self.count += 1
        if self.count > MAX_LINES:
            message = f"The input file must have at most {MAX_LINES} requests; split it."
            self.errors = [BatchError(code="too_many_tasks", message=message, line=line.number)]
            return
        fault = self._fault(line)
        if fault is not None and not self.is_full:
            code, message, param = fault
            self.errors.append(BatchError(code=code, message=message, line=line.number, param=param))

    def finish(self) -> None:
        """Add a fault to `errors` if the file has no requests."""
        if not self.count:
            message = "The input file has no requests; write one JSON object a line."
            self.errors.append(BatchError(code="empty_file", message=message))

    def _fault(self, line: Line) -> tuple[str, str, str | None] | None:
        """Return code, message and parameter of the first fault of a line; None if it has none."""
        if line.content is None:
            return "invalid_request", f"This line must not be longer than {self._max_bytes} bytes.", None
        try:
            request = _decode(line.content)
        except (ValueError, RecursionError) as error:
            if isinstance(error, msgspec.ValidationError):
                return "invalid_json_line", "This line is valid JSON but not an object; write one object a line.", None
            return "invalid_json_line", "This line is not parseable as valid JSON.", None
        for name in _REQUIRED:
            if getattr(request, name) is msgspec.UNSET:
                return "missing_required_parameter", f"Missing required parameter: '{name}'.", name
        return self._custom_id_fault(request) or self._route_fault(request) or self._body_fault(request, line.number)

    def _custom_id_fault(self, request: _LineFields) -> tuple[str, str, str | None] | None:
        custom_id = _text(request.custom_id)
        if custom_id is None or not 0 < len(custom_id) <= MAX_CUSTOM_ID_LENGTH or "\0" in custom_id:
            message = f"'custom_id' must be a text of 1 to {MAX_CUSTOM_ID_LENGTH} characters."
            return "invalid_type" if custom_id is None else "invalid_value", message, "custom_id"
        digest = blake2b(custom_id.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()
        if digest in self._custom_ids:
            message = f"The custom_id '{custom_id}' was used in an earlier line; use each one once."
            return "duplicate_custom_id", message, "custom_id"
        self._custom_ids.add(digest)
        return None

    def _route_fault(self, request: _LineFields) -> tuple[str, str, str | None] | None:
        if _text(request.method) != "POST":
            return "invalid_method", "'method' must be 'POST'.", "method"
        if _text(request.url) != self._endpoint:
            message = "The URL provided for this request does not match the batch endpoint."
            return "invalid_url", f"{message} Write '{self._endpoint}'.", "url"
        return None

    def _body_fault(self, request: _LineFields, number: int) -> tuple[str, str, str | None] | None:
        members = _members(request.body)
        if isinstance(members, str):
            return "invalid_request", members, "body"
        model = _text(members.get("model", msgspec.UNSET))
        if not model:
            return "invalid_request", "Model parameter is required.", "body.model"
        if (name := missing_member(self._endpoint, members)) is not None:
            return "invalid_request", f"{name.capitalize()} parameter is required.", f"body.{name}"
        if _is_stream(members.get("stream")):
            return "streaming_unsupported", "Streaming is not supported in the Batch API.", "body.stream"
        if self.model is None:
            self.model, self.model_line = model, number
        elif model != self.model:
            message = f"All requests of a batch must name the same model, '{self.model}' (got '{model}')."
            return "mismatched_model", message, "body.model"
        return None


def _members(raw: msgspec.Raw | msgspec.UnsetType) -> Members | str:
    """Return the members of a body, or the fault for which it has none."""
    body = b"" if isinstance(raw, msgspec.UnsetType) else bytes(raw)
    if not body.startswith(b"{"):
        return "'body' must be an object."
    try:
        body.decode()
        return read_members(body)
    except BadRequest as error:
        return error.message
    except ValueError:
        return "'body' must be valid UTF-8."


def _text(raw: msgspec.Raw | msgspec.UnsetType) -> str | None:
    try:
        return None if isinstance(raw, msgspec.UnsetType) else _decode_text(raw)
    except ValueError:
        return None


def _is_stream(raw: msgspec.Raw | None) -> bool:
    try:
        return raw is not None and bool(_decode_stream(raw))
    except ValueError:
        return False
