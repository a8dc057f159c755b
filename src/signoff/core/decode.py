"""Decoding of JSON that callers and models send, and of text files that people write."""

import re
from collections.abc import Container
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from signoff.core.choices import choice_of
from signoff.errors import BadRequest, MissingParameter

JsonObject = dict[str, Any]
T = TypeVar("T")
NULL = b"null"
# Some editors and PowerShell put it before a text; JSON, TOML and the lines of a file do not allow it.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TEXT_ENCODING = "utf-8-sig"
"""Encoding of files that people write: UTF-8, with a byte order mark or without."""
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`(?: - at `\$\.?(?P<place>.*)`)?")


def without_mark(text: bytes) -> bytes:
    """Return UTF-8 text without the byte order mark before it."""
    return text.removeprefix(BYTE_ORDER_MARK)


def decode_json(body: bytes, kind: type[T]) -> T:
    """Return the JSON in `body` as a `kind`.

    A null stands for the default of a member that has one, and values of enumerations count in any case.

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
        return msgspec.json.decode(_tolerant(body, inspect.type_info(kind)), type=kind)


def check_required(members: Container[str], *names: str) -> None:
    """Check that `members` has all of `names`. Raises MissingParameter for the first that it lacks."""
    for name in names:
        if name not in members:
            raise MissingParameter(name)


def form_fault(error: msgspec.ValidationError, text: str) -> BadRequest:
    """Return the error for JSON that lacks a member, or else has another form than expected, as `text` says."""
    if (missing := _MISSING.fullmatch(str(error))) is not None:
        return MissingParameter(".".join(part for part in (missing["place"], missing["name"]) if part))
    return BadRequest(f"{text}: {error}.")


def _tolerant(value: bytes, kind: inspect.Type) -> bytes:
    """Return a JSON value as `kind` accepts it, at any depth.

    Optional members of structs that cannot be null lose their nulls, and values of enumerations become lower case.
    """
    kinds = _alternatives(kind)
    match value.lstrip()[:1]:
        case b'"':
            return _in_lower_case(value, kinds)
        case b"[":
            for each in kinds:
                if isinstance(each, inspect.CollectionType):
                    items = msgspec.json.decode(value, type=list[msgspec.Raw])
                    return msgspec.json.encode([msgspec.Raw(_tolerant(bytes(item), each.item_type)) for item in items])
        case b"{":
            for each in kinds:
                if isinstance(each, inspect.StructType):
                    return _tolerant_object(value, each)
        case _:
            pass
    return value


def _tolerant_object(value: bytes, kind: inspect.StructType) -> bytes:
    fields = {field.encode_name: field for field in kind.fields}
    members: dict[str, msgspec.Raw] = {}
    for name, member in msgspec.json.decode(value, type=dict[str, msgspec.Raw]).items():
        field = fields.get(name)
        if field is None:
            members[name] = member
        elif field.required or bytes(member) != NULL or _accepts_null(field.type):
            members[name] = msgspec.Raw(_tolerant(bytes(member), field.type))
    return msgspec.json.encode(members)


def _in_lower_case(value: bytes, kinds: list[inspect.Type]) -> bytes:
    """Return a JSON text in lower case if that is a value of an enumeration in `kinds`, and no other text fits."""
    if any(isinstance(each, inspect.StrType) for each in kinds):
        return value
    values = [each for kind in kinds if isinstance(kind, inspect.LiteralType) for each in kind.values]
    choice = choice_of(msgspec.json.decode(value, type=str), (each for each in values if isinstance(each, str)))
    return value if choice is None else msgspec.json.encode(choice)


def _alternatives(kind: inspect.Type) -> list[inspect.Type]:
    """Return the types of a union, else the type itself; without their constraints."""
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [each for alternative in kind.types for each in _alternatives(alternative)]
    return [kind]


def _accepts_null(kind: inspect.Type) -> bool:
    return any(isinstance(each, inspect.NoneType | inspect.AnyType | inspect.RawType) for each in _alternatives(kind))


def as_object(value: object) -> JsonObject:
    """Return `value` itself if it is a JSON object, else an empty one."""
    return cast("JsonObject", value) if isinstance(value, dict) else {}


def as_objects(value: object) -> list[JsonObject]:
    """Return the JSON objects in `value` if it is a list, else an empty list."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("JsonObject", item) for item in items if isinstance(item, dict)]
