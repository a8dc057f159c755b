"""Decoding of JSON that callers and models send, and of text files that people write."""

from typing import Any, TypeVar, cast

import msgspec

JsonObject = dict[str, Any]
T = TypeVar("T")
NULL = b"null"
# Some editors and PowerShell put it before a text; JSON, TOML and the lines of a file do not allow it.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TEXT_ENCODING = "utf-8-sig"
"""Encoding of files that people write: UTF-8, with a byte order mark or without."""


def without_mark(text: bytes) -> bytes:
    """Return UTF-8 text without the byte order mark before it."""
    return text.removeprefix(BYTE_ORDER_MARK)


def decode_json(body: bytes, kind: type[T]) -> T:
    """Return the JSON in `body` as a `kind`. A null stands for the default of a member that has one.

    Raises:
        msgspec.ValidationError: The body is JSON, but not of this form.
        ValueError, RecursionError: The body is not JSON, even if a wrong member comes before the part that is not.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError:
        # Decoding stops at the first wrong member; what follows it may not be JSON.
        body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
        return msgspec.json.decode(_without_nulls(body, kind), type=kind)


def _without_nulls(body: bytes, kind: Any) -> bytes:
    """Return a JSON object without the nulls of optional members that cannot be null, at any depth of structs."""
    if not _is_struct(kind) or not body.lstrip().startswith(b"{"):
        return body
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    members: dict[str, msgspec.Raw] = {}
    for name, value in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items():
        field = fields.get(name)
        if field is None:
            members[name] = value
        elif field.required or bytes(value) != NULL or _accepts_null(field.type):
            members[name] = msgspec.Raw(_without_nulls(bytes(value), field.type))
    return msgspec.json.encode(members)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _accepts_null(kind: Any) -> bool:
    try:
        msgspec.json.decode(NULL, type=kind)
    except msgspec.ValidationError:
        return False
    return True


def as_object(value: object) -> JsonObject:
    """Return `value` itself if it is a JSON object, else an empty one."""
    return cast("JsonObject", value) if isinstance(value, dict) else {}


def as_objects(value: object) -> list[JsonObject]:
    """Return the JSON objects in `value` if it is a list, else an empty list."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("JsonObject", item) for item in items if isinstance(item, dict)]
