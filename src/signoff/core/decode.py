"""Decoding of JSON that callers and models send."""

from typing import Any, TypeVar, cast

import msgspec

JsonObject = dict[str, Any]
T = TypeVar("T")


def decode_json(body: bytes, kind: type[T]) -> T:
    """Return the JSON in `body` as a `kind`.

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
        raise


def as_object(value: object) -> JsonObject:
    """Return `value` itself if it is a JSON object, else an empty one."""
    return cast("JsonObject", value) if isinstance(value, dict) else {}
