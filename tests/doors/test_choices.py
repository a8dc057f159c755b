"""Values of enumerations count in any case, at every door, in every setting and in every option."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from signoff import doors
from signoff.commands.terminal import choice
from signoff.core.choices import in_lower_case
from signoff.core.decode import decode_json
from signoff.settings import Settings
from support.live_server import live
from support.syntax import tree_of

DOORS = Path(doors.__file__).parent


class Choice(str):
    """A value of an enumeration."""

    __slots__ = ()


def request_types() -> dict[str, type[msgspec.Struct]]:
    """Return the second argument of every call of `parse_json` in the doors that is the name of a class."""
    types: dict[str, type[msgspec.Struct]] = {}
    for path in sorted(DOORS.rglob("*.py")):
        module = importlib.import_module(".".join(("signoff.doors", *path.relative_to(DOORS).with_suffix("").parts)))
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "parse_json":
                kind = getattr(module, getattr(node.args[1], "id", ""), None)
                if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                    types[kind.__name__] = kind
    return types


LEAVES: dict[type[inspect.Type], Any] = {
    inspect.StrType: "Hold",
    inspect.BoolType: True,
    inspect.DictType: {},
    inspect.RawType: {"role": "Admin"},
    inspect.AnyType: {"role": "Admin"},
    inspect.NoneType: None,
}


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Return JSON values of a type, with a `Choice` for each value of an enumeration."""
    if isinstance(kind, inspect.Metadata):
        return values(kind.type)
    if isinstance(kind, inspect.UnionType):
        return st.one_of([values(each) for each in kind.types])
    if isinstance(kind, inspect.StructType):
        required = {field.encode_name: values(field.type) for field in kind.fields if field.required}
        optional = {field.encode_name: values(field.type) for field in kind.fields if not field.required}
        return st.fixed_dictionaries(required, optional=optional)
    if isinstance(kind, inspect.CollectionType):
        return st.lists(values(kind.item_type), max_size=2)
    return st.sampled_from(leaves(kind))


def leaves(kind: inspect.Type) -> list[Any]:
    if isinstance(kind, inspect.LiteralType):
        return [Choice(each) for each in kind.values]
    return [kind.ge or 1] if isinstance(kind, inspect.IntType | inspect.FloatType) else [LEAVES[type(kind)]]


def spelled(value: Any, spell: Any) -> Any:
    """Return a value in which each `Choice` is spelled by a function, and all else is as it was."""
    match value:
        case Choice():
            return spell(str(value))
        case dict():
            return {name: spelled(member, spell) for name, member in value.items()}
        case list():
            return [spelled(item, spell) for item in value]
        case _:
            return value


TYPES = request_types()
WITH_CHOICES = {name: kind for name, kind in TYPES.items() if "LiteralType" in repr(inspect.type_info(kind))}


def test_the_types_of_requests_are_found() -> None:
    assert {"ModelDescription", "PolicyDraft", "TokenRequest", "UserChange"} <= WITH_CHOICES.keys()
    assert {"LimitDescription", "NewBatch"} <= TYPES.keys()


@pytest.mark.parametrize("name", WITH_CHOICES)
@pytest.mark.parametrize("spell", [str.upper, str.title, str.swapcase])
def test_a_value_of_an_enumeration_counts_in_any_case(name: str, spell: Any) -> None:
    kind = WITH_CHOICES[name]

    @given(values(inspect.type_info(kind)))
    def check(value: Any) -> None:
        plain = decode_json(msgspec.json.encode(spelled(value, str)), kind)
        assert decode_json(msgspec.json.encode(spelled(value, spell)), kind) == plain

    check()


def test_a_wrong_value_of_an_enumeration_is_refused_as_it_was_written() -> None:
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'Root'"):
        decode_json(b'{"role": "Root"}', TYPES["UserChange"])


def literals_in(annotation: Any) -> list[str]:
    """Return the texts of all `Literal` types in an annotation."""
    if get_origin(annotation) is Literal:
        return [*get_args(annotation)]
    return [text for each in get_args(annotation) for text in literals_in(each)]


CHOICES = {name: texts for name, each in Settings.model_fields.items() if (texts := literals_in(each.annotation))}


@pytest.mark.parametrize("name", CHOICES)
def test_a_setting_takes_a_value_in_any_case(name: str) -> None:
    for value in CHOICES[name]:
        is_mapping = get_origin(Settings.model_fields[name].annotation) is dict
        given_value, expected = ({"Ops": value.title()}, {"Ops": value}) if is_mapping else (value.title(), value)
        assert getattr(Settings(**{name: given_value}), name) == expected


def test_a_value_of_another_type_stays_as_it_is() -> None:
    for value, annotation in (("Always", str), ("Always", str | None), (["A"], list[str]), ("Root", Literal["admin"])):
        assert in_lower_case(value, annotation) == value


def test_an_option_takes_a_value_in_any_case() -> None:
    assert choice("review", "Always", ("always", "never")) == "always"
    with pytest.raises(SystemExit):
        choice("review", "often", ("always", "never"))


@pytest.mark.anyio
async def test_a_parameter_takes_a_value_in_any_case(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        for query in (
            "GET /api/jobs?status=HUMAN",
            "GET /jobs?status=Human",
            "GET /api/reviews?order=Oldest",
            "GET /api/reviews/feedback?kind=Decisions",
            "GET /api/reviews/figures?by=Policy,DAY",
            "GET /api/usage?by=Model,Day&format=JSON",
            "GET /api/usage/latencies?by=Model",
            "POST /api/models/echo?operation=TRY",
        ):
            method, path = query.split()
            for url in (server.url + path.lower(), server.url + path):
                headers = {"authorization": f"Bearer {token}"}
                async with server.http.request(method, url, headers=headers) as response:
                    assert response.status == 200, await response.text()


@pytest.mark.anyio
async def test_values_are_stored_in_lower_case(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token, model = await server.token("admin"), {"name": "m", "kind": "Echo", "review": "Always", "cache": "NEVER"}
        status, answer = await server.ask("POST", "/api/models", token, json=model)
        assert status == 201, answer
        assert (answer["kind"], answer["review"], answer["cache"]) == ("echo", "always", "never")
