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


class Parcel(msgspec.Struct, frozen=True):
    """Bytes, and what they are. In JSON they are in base64."""

    content_type: str
    content: bytes


class _Wrapped(msgspec.Struct):
    parcel: Parcel


def wrapped(parcel: Parcel) -> bytes:
    """The parcel as JSON."""
    return msgspec.json.encode(_Wrapped(parcel))


def unwrapped(body: bytes) -> Parcel | None:
    """The parcel in `body`, where that is one."""
    if not body.startswith(_START):
        return None
    try:
        parcel = msgspec.json.decode(body, type=_Wrapped).parcel
    except (ValueError, RecursionError):
        return None
    return parcel if _KIND.fullmatch(parcel.content_type) else None


class _Weighed(msgspec.Struct):
    content_type: str
    content: msgspec.Raw


class _Seen(msgspec.Struct):
    parcel: _Weighed


def seen(body: bytes) -> str | None:
    """The kind and the size of the parcel in `body`, in words, where that is one."""
    if not body.startswith(_START):
        return None
    try:
        parcel = msgspec.json.decode(body, type=_Seen).parcel
    except (ValueError, RecursionError):
        return None
    if not _KIND.fullmatch(parcel.content_type):
        return None
    base64 = bytes(parcel.content).strip(b'"')
    return f"{parcel.content_type.partition(';')[0]}, {len(base64.rstrip(b'=')) * 3 // 4} bytes"


def field(parcel: Parcel, name: str) -> str | None:
    """The text of a form's first field with that name."""
    place = _place(parcel, name)
    return None if place is None else parcel.content[place].decode(errors="replace")


def with_field(parcel: Parcel, name: str, text: str) -> Parcel:
    """The form with another text in that field, where it has it; every other byte stays."""
    place = _place(parcel, name)
    if place is None or parcel.content[place] == text.encode():
        return parcel
    content = parcel.content[: place.start] + text.encode() + parcel.content[place.stop :]
    return Parcel(parcel.content_type, content)


def _place(parcel: Parcel, name: str) -> slice | None:
    """Where the text of that field is."""
    for part in _parts(parcel):
        head = parcel.content.find(b"\r\n\r\n", part.start, part.stop)
        found = _NAME.search(parcel.content[part.start : head].lstrip()) if head >= 0 else None
        if found is not None and found[1] == name.encode():
            return slice(head + 4, part.stop)
    return None


def _parts(parcel: Parcel) -> Iterator[slice]:
    """Where the parts of a form are, the line breaks around them left out."""
    told = _BOUNDARY.search(parcel.content_type)
    if told is None or not parcel.content_type.lower().startswith("multipart/"):
        return
    boundary = b"--" + (told[1] or told[2]).encode()
    start = parcel.content.find(boundary)
    while start >= 0:
        begin = start + len(boundary)
        start = parcel.content.find(b"\r\n" + boundary, begin)
        if start >= 0:
            yield slice(begin, start)
