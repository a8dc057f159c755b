"""Check of an answer against the JSON schema that its request asks for."""

from collections.abc import Sequence
from typing import Any, cast

import msgspec

JsonObject = dict[str, Any]
# The library checks with the interpreter locked, so the work must be bounded before: a caller wrote the schema.
MAX_SUBSCHEMAS = 20_000
_FORKS = ("allOf", "anyOf", "oneOf", "if", "then", "else", "not", "dependentSchemas", "patternProperties")
_POINTERS = ("$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$id", "$anchor")


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
    return bool(values) and all(_is_valid(wanted, value) for value in values)


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


def _is_valid(schema: JsonObject, value: object) -> bool:
    import jsonschema_rs

    try:
        _check_cost(schema)
        # The pattern engine takes linear time, and nothing is fetched from elsewhere.
        options = jsonschema_rs.RegexOptions()
        validator = jsonschema_rs.validator_for(schema, retriever=_refuse, pattern_options=options)
        return validator.is_valid(value)
    except Exception:  # noqa: BLE001 -- the library has many errors, and a caller wrote the schema
        return False


def _refuse(uri: str) -> Any:
    raise ValueError(f"the schema refers to another document: {uri}")


def _check_cost(schema: JsonObject) -> None:
    """Raise ValueError if a check against `schema` could take more than MAX_SUBSCHEMAS steps for each value.

    References multiply the steps. A schema that refers to itself is allowed if no value is checked by two of its
    references, because such branches would multiply with the depth of the answer.
    """
    costs: dict[str, int] = {}

    def cost(node: object, path: frozenset[str]) -> int:
        if isinstance(node, list):
            return 1 + sum(cost(each, path) for each in cast("list[object]", node))
        if not isinstance(node, dict):
            return 1
        members = cast("JsonObject", node)
        if any(name in members for name in _POINTERS):
            raise ValueError("the schema uses references that are not supported")
        total = 1 + sum(cost(value, path) for name, value in members.items() if name not in {"$defs", "definitions"})
        if isinstance(reference := members.get("$ref"), str):
            if reference in path:
                _check_forks(schema)
                return total
            if reference not in costs:
                costs[reference] = cost(_resolve(schema, reference), path | {reference})
            total += costs[reference]
        if total > MAX_SUBSCHEMAS:
            raise ValueError("the schema is too large")
        return total

    cost(schema, frozenset())


def _check_forks(node: object) -> None:
    """Raise ValueError if two branches that apply to one value have references."""
    if isinstance(node, list):
        for each in cast("list[object]", node):
            _check_forks(each)
    elif isinstance(node, dict):
        members = cast("JsonObject", node)
        branches = [branch for name in _FORKS if name in members for branch in _branches(members[name])]
        beside = "properties" in members or "additionalProperties" in members or "$ref" in members
        if sum(map(_has_reference, branches)) > (0 if beside or "patternProperties" in members else 1):
            raise ValueError("the schema refers to itself in more than one branch")
        for value in members.values():
            _check_forks(value)


def _branches(value: object) -> list[object]:
    if isinstance(value, list):
        return cast("list[object]", value)
    return [value]


def _has_reference(node: object) -> bool:
    return b'"$ref"' in msgspec.json.encode(node)


def _resolve(schema: JsonObject, reference: str) -> object:
    """Return the part of `schema` that a reference such as `#/$defs/a` points to. Raises an Exception of any kind."""
    if not reference.startswith("#"):
        raise ValueError("the schema refers to another document")
    node: Any = schema
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        node = _item(node, name)
    return node


def _item(node: Any, name: str) -> object:
    return node[int(name) if isinstance(node, list) else name]
