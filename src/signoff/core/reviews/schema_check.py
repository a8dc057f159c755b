"""Check of an answer against the JSON schema that its request asks for."""

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from signoff.core.json_schema import fits_schema

JsonObject = dict[str, Any]


def meets_schema(request: bytes, texts: Sequence[str]) -> bool | None:
    """Return True if each text is JSON that meets the schema of `request`; None if it asks for no JSON.

    A schema that cannot be used, or that refers to another document, is met by nothing.
    """
    wanted = _schema_in(request)
    if wanted is None:
        return None
    try:
        values = [msgspec.json.decode(text) for text in texts]
    except (ValueError, RecursionError):
        return False
    return bool(values) and all(fits_schema(wanted, value) is True for value in values)


def _schema_in(request: bytes) -> JsonObject | None:
    """Return the schema of `response_format` (chat), `text.format` (responses) or `output_format` (messages)."""
    try:
        body = msgspec.json.decode(request)
    except (ValueError, RecursionError):
        return None
    match body:
        case {"response_format": {"type": "json_schema", "json_schema": {"schema": dict() as schema}}}:  # pyright: ignore[reportUnknownVariableType]
            return cast("JsonObject", schema)
        case {"text": {"format": {"type": "json_schema", "schema": dict() as schema}}}:  # pyright: ignore[reportUnknownVariableType]
            return cast("JsonObject", schema)
        case {"output_format": {"type": "json_schema", "schema": dict() as schema}}:  # pyright: ignore[reportUnknownVariableType]
            return cast("JsonObject", schema)
        case {"response_format": {"type": "json_object"}} | {"text": {"format": {"type": "json_object"}}}:
            return {"type": "object"}
        case _:
            return None
