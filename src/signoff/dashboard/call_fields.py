"""Arguments of tool calls as fields of a form: which field shows an argument, and what its text means."""

from typing import Any, Literal, cast

import msgspec

from signoff.core.decode import JsonObject, as_object

FieldKind = Literal["text", "area", "number", "checkbox", "select", "json"]
MAX_OPTIONS = 100
MAX_LINE = 80
# Beginning of the fault of a text that cannot be parsed as a value.
UNREADABLE = "This is not"
_NUMBERS = ("number", "integer")


class Argument(msgspec.Struct, frozen=True, kw_only=True):
    """Argument of a call, and how the form shows it."""

    name: str
    """Name of the argument."""
    kind: FieldKind
    """Kind of the field."""
    type_text: str
    """Type in words, such as `one of 3`."""
    description: str
    """Description from the schema; may be empty."""
    is_required: bool
    """True if the schema needs the argument."""
    is_nullable: bool
    """True if an empty field means null."""
    options: tuple[str, ...] = ()
    """Values of a select, as JSON."""


def arguments_of(schema: JsonObject, *values: JsonObject) -> list[Argument]:
    """Return the arguments that a schema names, and then the others that `values` have. The first value decides."""
    properties = as_object(schema.get("properties"))
    required = cast("list[object]", names) if isinstance(names := schema.get("required"), list) else []
    every = {name: None for each in (properties, *values) for name in each}
    merged = {name: value for each in reversed(values) for name, value in each.items()}
    return [_argument(name, as_object(properties.get(name)), merged, is_required=name in required) for name in every]


def _argument(name: str, schema: JsonObject, values: JsonObject, *, is_required: bool) -> Argument:
    types = _types_of(schema)
    kind, options = _kind(schema, [each for each in types if each != "null"], values.get(name, msgspec.UNSET))
    is_unset = kind == "checkbox" and not is_required and name not in values
    if is_unset:  # a box cannot show that there is no value
        kind, options = "select", ("true", "false")
    described = schema.get("description")
    return Argument(
        name=name,
        kind=kind,
        options=options,
        type_text=f"one of {len(options)}" if kind == "select" and not is_unset else " or ".join(types) or kind,
        description=described if isinstance(described, str) else "",
        is_required=is_required,
        is_nullable="null" in types,
    )


def _types_of(schema: JsonObject) -> list[str]:
    types = schema.get("type")
    several = cast("list[object]", types) if isinstance(types, list) else [types]
    return [each for each in several if isinstance(each, str)]


def _kind(schema: JsonObject, types: list[str], value: object) -> tuple[FieldKind, tuple[str, ...]]:
    """Return the kind of a field, and the values that it offers. A value that does not fit is shown as JSON."""
    options = schema.get("enum")
    if isinstance(options, list) and 0 < len(cast("list[object]", options)) <= MAX_OPTIONS:
        texts = tuple(as_json(each) for each in cast("list[object]", options))
        return ("select", texts) if value is msgspec.UNSET or as_json(value) in texts else ("json", ())
    match value:
        case bool():
            of_value, allowed = "checkbox", ("boolean",)
        case int() | float():
            of_value, allowed = "number", _NUMBERS
        case str():
            of_value, allowed = _kind_of_text(schema, value), ("string",)
        case _:
            of_value, allowed = "json", ("array", "object")
    if value is None or value is msgspec.UNSET:
        return _kind_of_type(schema, types), ()
    return (of_value if not types or set(types) & set(allowed) else "json"), ()


def _kind_of_type(schema: JsonObject, types: list[str]) -> FieldKind:
    match types:
        case ["boolean"]:
            return "checkbox"
        case ["number" | "integer"]:
            return "number"
        case ["string"]:
            return _kind_of_text(schema, "")
        case _:
            return "json"


def _kind_of_text(schema: JsonObject, value: str) -> FieldKind:
    length = schema.get("maxLength")
    is_long = len(value) > MAX_LINE or "\n" in value or "\r" in value
    return "area" if is_long or (isinstance(length, int) and length > 4 * MAX_LINE) else "text"


def field_text(argument: Argument, values: JsonObject) -> str:
    """Return the text of the field that shows the value of an argument; empty if there is none."""
    if argument.name not in values:
        return ""
    value = values[argument.name]
    if argument.kind in {"text", "area"} and isinstance(value, str):
        return value
    if value is None and argument.is_nullable:
        return ""
    text = as_json(value)
    return msgspec.json.format(text, indent=2) if argument.kind == "json" and len(text) > MAX_LINE else text


def field_value(argument: Argument, text: str, original: JsonObject) -> Any:
    """Return the value that the text of a field means; UNSET for no value. Raises ValueError with what is wrong.

    A text that was not changed means the original value, however that was written.
    """
    if argument.kind == "checkbox":
        return text == "true"
    if text == field_text(argument, original).replace("\r\n", "\n"):
        return original.get(argument.name, msgspec.UNSET)
    if not text.strip() and not (argument.kind in {"text", "area"} and argument.name in original):
        return None if argument.is_nullable else msgspec.UNSET
    if argument.kind in {"text", "area"}:
        return text
    try:
        value: object = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        kind = "a number" if argument.kind == "number" else f"JSON ({error})"
        raise ValueError(f"{UNREADABLE} {kind}: {text.strip()[:100]!r}.") from None
    if argument.kind == "number" and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{UNREADABLE} a number: {text.strip()[:100]!r}.")
    return value


def as_json(value: object) -> str:
    """Return a value as JSON."""
    return msgspec.json.encode(value).decode()
