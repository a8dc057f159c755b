"""A parcel: bytes that are no JSON (a form with files, sound, a picture) in JSON, which is what a job keeps.

Forms are read as RFC 7578 has them, and no further than to the field that is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

_START = b'{"parcel":'
# It becomes a header, and whoever wrote it may want to add lines of their own.
_KIND = re.compile(r"[\x20-\x7e]+")
_BOUNDARY = re.compile(r'boundary=(?:"([^"]+)"|([^\s;]+))', re.IGNORECASE)
_NAME = re.compile(rb'^content-disposition:[^\r\n]*[;\s]name="?([^";\r\n]*)"?', re.IGNORECASE | re.MULTILINE)


class BinaryBody(msgspec.Struct, frozen=True):
    """Bytes, and what they are. In JSON they are in base64."""

    content_type: str
    content: bytes


class _Encoded(msgspec.Struct):
    binary: BinaryBody


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
    binary: _Described


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
    """The text of a form's first field with that name."""
    place = _field_span(binary, name)
    return None if place is None else binary.content[place].decode(errors="replace")


def with_form_field(binary: BinaryBody, name: str, text: str) -> BinaryBody:
    """The form with another text in that field, where it has it; every other byte stays."""
    place = _field_span(binary, name)
    if place is None or binary.content[place] == text.encode():
        return binary
    content = binary.content[: place.start] + text.encode() + binary.content[place.stop :]
    return BinaryBody(binary.content_type, content)


def _field_span(binary: BinaryBody, name: str) -> slice | None:
    """Where the text of that field is."""
    for part in _parts(binary):
        head = binary.content.find(b"\r\n\r\n", part.start, part.stop)
        found = _NAME.search(binary.content[part.start : head].lstrip()) if head >= 0 else None
        if found is not None and found[1] == name.encode():
            return slice(head + 4, part.stop)
    return None


def _parts(binary: BinaryBody) -> Iterator[slice]:
    """Where the parts of a form are, the line breaks around them left out."""
    told = _BOUNDARY.search(binary.content_type)
    if told is None or not binary.content_type.lower().startswith("multipart/"):
        return
    boundary = b"--" + (told[1] or told[2]).encode()
    start = binary.content.find(boundary)
    while start >= 0:
        begin = start + len(boundary)
        start = binary.content.find(b"\r\n" + boundary, begin)
        if start >= 0:
            yield slice(begin, start)
