"""JSON schemas of callers, who may be hostile: faults have their place, and no check takes long."""

from __future__ import annotations

from typing import Any

import pytest

from signoff.core.json_schema import fits_schema, schema_fault

REFUND = {
    "type": "object",
    "properties": {
        "amount": {"type": "number", "maximum": 100},
        "items": {"type": "array", "items": {"type": "object", "properties": {"sku": {"type": "string"}}}},
        "currency": {"enum": ["EUR", "USD"]},
    },
    "required": ["amount"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
        }
    },
}


def chain(length: int) -> dict[str, Any]:
    """Return a schema in which each definition refers to the next one twice."""
    defs: dict[str, Any] = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": defs | {f"d{length}": {"type": "object"}}}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def alternatives() -> dict[str, Any]:
    """Return a recursive schema with alternatives, each of which fails only at the end of the value."""
    names = ("q", "r")
    defs = {
        name: {
            "type": "object",
            "properties": {"a": {"anyOf": [{"$ref": f"#/$defs/{other}"} for other in names]}},
            "required": [name],
        }
        for name in names
    }
    return {"$ref": "#/$defs/q", "$defs": defs}


@pytest.mark.parametrize(
    ("schema", "value", "path", "words"),
    [
        pytest.param(REFUND, {"amount": 150}, ".amount", "maximum of 100", id="number"),
        pytest.param(REFUND, {"amount": 1, "items": [{}, {"sku": 3}]}, ".items[1].sku", "string", id="in a list"),
        pytest.param(REFUND, {"amount": 1, "currency": "GBP"}, ".currency", "EUR", id="enum"),
        pytest.param(REFUND, {}, "", "amount", id="missing"),
        pytest.param(REFUND, {"amount": 1, "extra": 2}, "", "extra", id="additional"),
        pytest.param(REFUND, [], "", "object", id="other type"),
        pytest.param(
            TREE, {"children": [{"children": [{"name": 3}]}]}, ".children[0].children[0].name", "string", id="recursive"
        ),
        pytest.param(False, {}, "", "", id="no value fits"),
    ],
)
def test_a_fault_has_its_place_and_its_description(schema: Any, value: Any, path: str, words: str) -> None:
    fault = schema_fault(schema, value)
    assert fault is not None
    assert (fault.path, fits_schema(schema, value)) == (path, False)
    assert words in fault.message


def test_a_value_that_fits_has_no_fault() -> None:
    assert fits_schema(REFUND, {"amount": 100, "items": [{"sku": "a"}]}) is True
    assert schema_fault(REFUND, {"amount": 100}) is None
    assert fits_schema(TREE, {"name": "a", "children": [{"name": "b"}]}) is True
    assert fits_schema({}, [1]) is True


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"type": "none such"}, id="not valid"),
        pytest.param([1], id="no schema"),
        pytest.param(None, id="null"),
        pytest.param({"$ref": "https://example.com/schema.json"}, id="remote"),
        pytest.param({"$ref": "file:///etc/passwd"}, id="file"),
        pytest.param({"$ref": "#/$defs/none"}, id="missing definition"),
        pytest.param({"$ref": "#/$defs/a/0", "$defs": {"a": "b"}}, id="no definition"),
        pytest.param({"properties": {"a": {"$id": "https://a.example", "$ref": "#/b"}}}, id="another base"),
        pytest.param({"$schema": "https://example.com/unknown"}, id="unknown dialect"),
        pytest.param({"pattern": "("}, id="pattern"),
        pytest.param({"pattern": "(a{1000}){1000}"}, id="large pattern"),
        pytest.param(chain(64), id="exponential"),
    ],
)
def test_what_cannot_be_checked_is_not_checked(schema: Any) -> None:
    assert fits_schema(schema, {"a": 1}) is None
    assert schema_fault(schema, {"a": 1}) is None


def test_a_schema_that_is_nested_too_deeply_is_not_checked() -> None:
    schema: Any = {"type": "object"}
    for _ in range(5000):
        schema = {"items": schema}
    assert fits_schema(schema, {}) is None


def test_work_is_bounded() -> None:
    assert fits_schema(chain(10), {}) is True
    assert fits_schema(chain(22), {}) is None
    assert fits_schema(chain(10), [nested(0)] * 5000) is None, "each of 5,000 values needs 2^10 evaluations"
    assert fits_schema({"items": {"type": "object"}}, [nested(0)] * 5000) is True
    fault = schema_fault(alternatives(), nested(200))
    assert fault is not None
    assert "does not fit" in fault.message, "to describe it, 2^200 alternatives would be evaluated"
    described = schema_fault(alternatives(), nested(2))
    assert described is not None
    assert "does not fit" not in described.message


@pytest.mark.parametrize("loop", [{"allOf": [{"$ref": "#"}]}, {"$ref": "#"}, {"not": {"$ref": "#"}}], ids=str)
def test_a_schema_that_leads_to_itself_ends(loop: dict[str, Any]) -> None:
    fits_schema(loop, {"a": 1})
    schema_fault(loop, {"a": 1})


def test_a_pattern_that_backtracks_ends() -> None:
    assert fits_schema({"type": "string", "pattern": "^(?=(a|aa)+$)(a|aa)+b$"}, "a" * 5000) is False
