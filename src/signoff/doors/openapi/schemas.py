"""JSON schemas of types, with the docstrings of their fields as descriptions."""

import ast
import inspect
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, cast, get_args, get_origin

import msgspec

from signoff.core.model import Model
from signoff.doors.models import ModelDescription
from signoff.doors.openapi.answers import catalog, jobs, reports, reviews

Schema = dict[str, Any]
# Bodies whose fields are described with those of another class.
_DESCRIBED_AS: dict[type, type] = {ModelDescription: Model}
_EXTENDED = catalog.EXTENDED | jobs.EXTENDED | reports.EXTENDED | reviews.EXTENDED


def schemas_of(types: Sequence[Any]) -> tuple[list[Schema], dict[str, Schema]]:
    """Return the schema of each type, and the components that they refer to."""
    bases = [base for base, _ in _EXTENDED.values()]
    schemas, components = msgspec.json.schema_components([*types, *bases], ref_template="#/components/schemas/{name}")
    for each in {*_classes_in([*types, *bases])}:
        for name in components.keys() & {each.__name__} or _parameterized(components, each):
            _describe(components[name], each)
    for extended, (base, hidden) in _EXTENDED.items():
        if extended.__name__ in components:
            components[extended.__name__] = _extended(components[extended.__name__], components[base.__name__], hidden)
    return list(schemas[: len(types)]), _used(schemas[: len(types)], components)


def _extended(component: Schema, base: Schema, hidden: set[str]) -> Schema:
    """Return a component with the fields of another one besides its own; all of them are present."""
    shown = {name: schema for name, schema in base["properties"].items() if name not in hidden}
    own = component["properties"]
    optional = own.keys() - set(component.get("required", ()))
    properties = {name: {k: v for k, v in schema.items() if k != "default"} for name, schema in shown.items()} | own
    return component | {"properties": properties, "required": [name for name in properties if name not in optional]}


def _classes_in(types: Sequence[Any]) -> Iterator[type]:
    """Yield the classes that `types` consist of, and those of their fields."""
    ahead, seen = list(types), set[Any]()
    while ahead:
        each = ahead.pop()
        if each not in seen and (origin := get_origin(each)) is not None:
            seen.add(each)
            ahead += [origin, *get_args(each)]
        elif isinstance(each, type) and each not in seen and each.__module__.startswith("signoff."):
            seen.add(each)
            yield each
            ahead += inspect.get_annotations(each, eval_str=True).values()
            ahead += each.__mro__[1:]


def _parameterized(components: dict[str, Schema], of: type) -> list[str]:
    """Return the names of the components of a generic class, such as `Page_JobAnswer_`."""
    return [name for name in components if name.startswith(f"{of.__name__}_")]


def _describe(component: Schema, of: type) -> None:
    """Add the docstrings of fields to the schema of a class."""
    described = _descriptions(of)
    fields = msgspec.structs.fields(of) if issubclass(of, msgspec.Struct) else ()
    python_names = {field.encode_name: str(field.name) for field in fields}
    for name, schema in component.get("properties", {}).items():
        if (text := described.get(python_names.get(name) or name)) is not None:
            schema["description"] = " ".join(text.split())


def _descriptions(of: type) -> dict[str, str]:
    """Return the docstrings of the fields of a class and of its bases."""
    described = _descriptions(_DESCRIBED_AS[of]) if of in _DESCRIBED_AS else dict[str, str]()
    node = _classes_of(of.__module__).get(of.__qualname__)
    if node is None:
        return described
    # Typed dictionaries do not know their bases, so these come from the source.
    for base in node.bases:
        name = ast.unparse(base).partition("[")[0]
        if isinstance(known := getattr(sys.modules[of.__module__], name, None), type):
            described |= _descriptions(known)
    return described | dict(_docstrings(node))


def attribute_docstrings(of: type) -> dict[str, str]:
    """Return the docstring of each attribute that a class defines itself."""
    return dict(_docstrings(_classes_of(of.__module__)[of.__qualname__]))


@cache
def _classes_of(module: str) -> dict[str, ast.ClassDef]:
    """Return the classes of a module of this package by name."""
    if not module.startswith("signoff."):
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _docstrings(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, text in pairwise(node.body):
        match field, text:
            case ast.AnnAssign(target=target), ast.Expr(value=ast.Constant(value=str(docstring))):
                yield ast.unparse(target), inspect.cleandoc(docstring)
            case _:
                continue


def _used(schemas: Sequence[Schema], components: dict[str, Schema]) -> dict[str, Schema]:
    """Return the components that `schemas` refer to, directly or through others."""
    used, ahead = dict[str, Schema](), [*schemas]
    while ahead:
        for name in _references(ahead.pop()):
            if name not in used:
                used[name] = components[name]
                ahead.append(components[name])
    return {name: used[name] for name in sorted(used)}


def _references(value: Any) -> Iterator[str]:
    """Yield the names of the components that a schema refers to itself."""
    if isinstance(value, list):
        for each in cast("list[Any]", value):
            yield from _references(each)
    elif isinstance(value, dict):
        members = cast("Schema", value)
        if isinstance(reference := members.get("$ref"), str):
            yield reference.rpartition("/")[2]
        for each in members.values():
            yield from _references(each)
