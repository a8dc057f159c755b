"""Images, sounds and files within requests, as the desk shows them: each at an address of its own."""

import base64
import binascii
import re
from collections.abc import Iterator
from typing import cast

import msgspec

from signoff.core.binary import BinaryBody, decode_binary
from signoff.core.decode import JsonObject
from signoff.core.form import is_form, split_form
from signoff.errors import BadRequest

MAX_MEDIA = 20
_IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"})
_SOUNDS = frozenset({"audio/wav", "audio/x-wav", "audio/mpeg", "audio/mp3", "audio/ogg", "audio/flac", "audio/webm"})
_BEGINNINGS = {
    b"\x89PNG": "image/png",
    b"GIF8": "image/gif",
    b"\xff\xd8\xff": "image/jpeg",
    b"OggS": "audio/ogg",
    b"fLaC": "audio/flac",
    b"RIFF": "audio/wav",
    b"ID3": "audio/mpeg",
    b"\xff\xfb": "audio/mpeg",
}
_ADDRESS = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w=.-]+)*;base64,(.*)", re.DOTALL)


class RequestFile(msgspec.Struct, frozen=True, kw_only=True):
    """Image, sound or file in a request."""

    content_type: str
    """Content type in lower case, without parameters."""
    content: bytes
    """The bytes."""

    @property
    def kind(self) -> str:
        """Kind of the element that shows it: `image`, `sound`, or `file` for what is only described."""
        return "image" if self.content_type in _IMAGES else "sound" if self.content_type in _SOUNDS else "file"


def media_of(body: bytes) -> list[RequestFile]:
    """Return the first MAX_MEDIA images, sounds and files in a request, in order."""
    media = list[RequestFile]()
    for medium in _media(body):
        media.append(medium)
        if len(media) == MAX_MEDIA:
            break
    return media


def _media(body: bytes) -> Iterator[RequestFile]:
    if (binary := decode_binary(body)) is not None:
        yield from _of_binary(binary)
        return
    try:
        ahead: list[object] = [msgspec.json.decode(body)]
    except (ValueError, RecursionError):
        return
    while ahead:
        value = ahead.pop()
        if isinstance(value, list):
            ahead += reversed(cast("list[object]", value))
        elif isinstance(value, dict):
            members = cast("JsonObject", value)
            if (medium := _of_members(members)) is not None:
                yield medium
            else:
                ahead += reversed(members.values())
        elif isinstance(value, str) and value.startswith("data:") and (match := _ADDRESS.fullmatch(value)):
            yield from _decoded(match[1], match[2])


def _of_members(members: JsonObject) -> RequestFile | None:
    """Return the medium of a part that names its type beside the data: an input of audio, or a source in base64."""
    match members:
        case {"data": str() as data, "format": str() as form}:
            return next(_decoded(f"audio/{form}", data), None)
        case {"type": "base64", "media_type": str() as content_type, "data": str() as data}:
            return next(_decoded(content_type, data), None)
        case _:
            return None


def _decoded(content_type: str, data: str) -> Iterator[RequestFile]:
    try:
        content = base64.b64decode(data)
    except (ValueError, binascii.Error):
        return
    yield _medium(content_type, content)


def _of_binary(binary: BinaryBody) -> Iterator[RequestFile]:
    if not is_form(binary.content_type):
        yield _medium(binary.content_type, binary.content)
        return
    try:
        fields = split_form(binary)
    except BadRequest:
        return
    for field in fields:
        content = binary.content[field.span]
        # A sender may name any type, so what a file begins with decides.
        beginning = next((start for start in _BEGINNINGS if content.startswith(start)), None)
        if beginning is not None:
            yield _medium(_BEGINNINGS[beginning], content)


def _medium(content_type: str, content: bytes) -> RequestFile:
    return RequestFile(content_type=content_type.partition(";")[0].strip().lower(), content=content)
