"""JSON schemas of callers: check a value against one, with bounded work.

Nothing is fetched: a reference must lead to a place in the schema itself. A schema that is not valid, or whose work
could not be bounded, checks nothing. The validator evaluates a recursive definition once for each place of a value,
but one that is not recursive each time that it is referred to; and to describe a fault it evaluates all alternatives.
"""

import itertools
from typing import NamedTuple, cast

import jsonschema_rs

from signoff.core.decode import JsonObject

# Bound on evaluations of subschemas; five million take about 0.2 s.
MAX_STEPS = 5_000_000
MAX_MESSAGE_LENGTH = 300
_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000, size_limit=1_000_000)
# Members that change where a reference leads.
_REBASING = ("$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor")


class SchemaFault(NamedTuple):
    """A difference between a value and its schema."""

    path: str
    """Place in the value, such as `.items[0].price`; empty for the value itself, or if it is not known."""
    message: str
    """Description of the fault."""


def fits_schema(schema: object, value: object) -> bool | None:
    """Return True if `value` has the form that `schema` describes; None if that cannot be checked."""
    validator, cost = _validator(schema), _cost_of(schema)
    if validator is None or cost is None or cost.size * _count(value) > MAX_STEPS:
        return None
    try:
        return validator.is_valid(value)
    except ValueError:
        return None


def schema_fault(schema: object, value: object) -> SchemaFault | None:
    """Return the first difference between `value` and `schema`; None if it fits, or if that cannot be checked."""
    return next(iter(schema_faults(schema, value, limit=1)), None)


def schema_faults(schema: object, value: object, *, limit: int) -> list[SchemaFault]:
    """Return the first `limit` differences; see `schema_fault`."""
    if fits_schema(schema, value) is not False:
        return []
    validator, cost = _validator(schema), _cost_of(schema)
    if validator is None or cost is None or cost.steps_to_describe(_depth(value)) * _count(value) > MAX_STEPS:
        return [SchemaFault("", "the value does not fit the schema")]
    errors = itertools.islice(validator.iter_errors(value), limit)
    return [SchemaFault(_path_text(error.instance_path), _shortened(error.message)) for error in errors]


def _shortened(message: str) -> str:
    if len(message) <= MAX_MESSAGE_LENGTH:
        return message
    return f"{message[: MAX_MESSAGE_LENGTH // 2]}…{message[-MAX_MESSAGE_LENGTH // 2 :]}"


def _validator(schema: object) -> jsonschema_rs.Validator | None:
    """Return the validator of `schema`; None if it is not valid."""
    if not isinstance(schema, dict | bool):
        return None
    try:
        return jsonschema_rs.validator_for(cast("JsonObject", schema), offline=True, pattern_options=_PATTERNS)
    except (ValueError, jsonschema_rs.ReferencingError):
        return None


def _path_text(path: list[str | int]) -> str:
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in path)


class _Cost(NamedTuple):
    """Number of evaluations that a schema can need at one place of a value, at most `MAX_STEPS` + 1."""

    size: int
    """Subschemas, with those that are referred to in place of each reference."""
    recursions: int = 0
    """References to a definition from within itself."""

    def plus(self, other: "_Cost") -> "_Cost":
        return _Cost(min(self.size + other.size, MAX_STEPS + 1), min(self.recursions + other.recursions, MAX_STEPS + 1))

    def steps_to_describe(self, depth: int) -> int:
        """Return the number of evaluations that describe a fault in a value of this depth."""
        steps = self.size
        for _ in range(depth):
            steps = min(steps * max(1, self.recursions), MAX_STEPS + 1)
        return steps


def _cost_of(schema: object) -> _Cost | None:
    """Return the cost of `schema`; None if it is nested too deeply, or if it is not known where a reference leads."""
    try:
        return _measure(schema, schema, {}, set())
    except (LookupError, RecursionError, ValueError):
        return None


def _measure(node: object, root: object, known: dict[int, _Cost], open_ids: set[int]) -> _Cost:
    """Return the cost of a part of the schema `root`; `known` has those of others, `open_ids` what leads here."""
    if isinstance(node, list):
        total = _Cost(0)
        for each in cast("list[object]", node):
            total = total.plus(_measure(each, root, known, open_ids))
        return total
    if not isinstance(node, dict):
        return _Cost(0)
    members, total, key = cast("JsonObject", node), _Cost(1), id(cast("object", node))
    if key in open_ids:
        return _Cost(1, 1)
    if key in known:
        return known[key]
    open_ids.add(key)
    for name, value in members.items():
        if isinstance(value, str) and (name in _REBASING or (name in {"$id", "id"} and members is not root)):
            raise LookupError(name)
        target = _resolve(root, value) if name == "$ref" and isinstance(value, str) else value
        total = total.plus(_measure(target, root, known, open_ids))
    open_ids.remove(key)
    known[key] = total
    return total


def _resolve(root: object, reference: str) -> object:
    """Return the place of a schema that a JSON pointer names. Raises LookupError, ValueError."""
    head, *names = reference.split("/")
    if head != "#" or "%" in reference:
        raise LookupError(reference)
    place = root
    for name in names:
        key = name.replace("~1", "/").replace("~0", "~")
        place = cast("JsonObject", place)[key] if isinstance(place, dict) else cast("list[object]", place)[int(key)]
    return place


def _count(value: object) -> int:
    """Return the number of values in a value, itself included."""
    count, left = 0, [value]
    while left:
        each = left.pop()
        count += 1
        left += _children(each)
    return count


def _depth(value: object) -> int:
    """Return the number of objects and lists around the innermost value."""
    depth, level = 0, _children(value)
    while level:
        depth, level = depth + 1, [child for each in level for child in _children(each)]
    return depth


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast("JsonObject", value).values())
    return cast("list[object]", value) if isinstance(value, list) else []
