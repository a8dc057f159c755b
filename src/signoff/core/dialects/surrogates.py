r"""Parts of characters in JSON: lone surrogates, which are halves of a character beyond U+FFFF, and cut UTF-8.

Servers that write such characters as two escapes (`\ud83d\ude00`) may cut an answer, or an event, between the two.
JSON allows it (RFC 8259, section 8.2), and msgspec refuses it.
"""

import json
import re
from typing import Any

import msgspec

# An escape is read whole, so that the text `\\ud83d` after an escaped backslash is none.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def without_lone_surrogates(body: bytes) -> bytes:
    """Return the JSON `body` with U+FFFD in place of each lone surrogate; as it is, if it has none.

    Raises:
        ValueError: `body` is not JSON.
        RecursionError: `body` is nested too deeply.
    """
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except ValueError:
        if not has_surrogates(body):
            raise
        body = replace_lone_surrogates(body)
        msgspec.json.decode(body, type=msgspec.Raw)
    return body


def as_utf8(body: bytes) -> bytes:
    """Return `body` with U+FFFD in place of bytes that are no UTF-8, such as a part of a character that was cut."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return body.decode(errors="replace").encode()
    return body


def has_surrogates(body: bytes) -> bool:
    """Return True if `body` may have escapes of surrogates."""
    return b"\\u" in body and (b"\\ud" in body or b"\\uD" in body)


def replace_lone_surrogates(body: bytes) -> bytes:
    """Return the JSON `body` with U+FFFD, as an escape, in place of each lone surrogate."""
    return _ESCAPE.sub(lambda match: rb"\ufffd" if match[1] else match[0], body)


def decode_with_surrogates(body: bytes) -> Any:
    """Decode JSON whose texts may have lone surrogates, which they keep.

    Raises:
        ValueError: `body` is not JSON.
        RecursionError: `body` is nested too deeply.
    """
    try:
        return msgspec.json.decode(body)
    except ValueError:
        if not has_surrogates(body):
            raise
    return json.loads(body, parse_constant=_refuse_constant)


def encode_with_surrogates(value: Any, **options: Any) -> bytes:
    """Encode a value as JSON; surrogates that have come together are one character, and U+FFFD stands for a lone one.

    `options` are those of `json.dumps`.
    """
    return replace_lone_surrogates(json.dumps(value, separators=(",", ":"), **options).encode())


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
