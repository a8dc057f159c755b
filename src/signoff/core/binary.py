"""Bodies that are not JSON (a form with files, audio, an image) in a JSON envelope, which a job can store."""

import re

import msgspec

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
