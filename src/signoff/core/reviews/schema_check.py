"""Check of an answer against the JSON schema that its request asks for."""

from collections.abc import Sequence

import msgspec

from signoff.core.dialects.edit_faults import format_of
from signoff.core.json_schema import fits_schema


def meets_schema(request: bytes, texts: Sequence[str]) -> bool | None:
    """Return True if each text is JSON that meets the schema of `request`; None if it asks for no JSON.

    Without a schema, each text must be a JSON object. No text meets a schema that is not valid or refers to another
    document.
    """
    wanted = format_of(request)
    if wanted is None:
        return None
    schema = {"type": "object"} if wanted.schema is None else wanted.schema
    try:
        values = [msgspec.json.decode(text) for text in texts]
    except (ValueError, RecursionError):
        return False
    return bool(values) and all(fits_schema(schema, value) is True for value in values)
