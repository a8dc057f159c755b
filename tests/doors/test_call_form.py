"""The form of tool calls: the field of each argument, what its text means, and the edit that comes of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from signoff.core.dialects.tool_call_edits import CallEdit, CallsEdit, ToolCall
from signoff.dashboard.call_fields import arguments_of, field_text, field_value
from signoff.dashboard.call_form import call_forms, read_calls
from signoff.dashboard.media import media_of

BIG = 12345678901234567890


@pytest.mark.parametrize(
    ("schema", "value", "kind", "text"),
    [
        ({"type": "string"}, "a", "text", "a"),
        ({"type": "string"}, "a\nb", "area", "a\nb"),
        ({"type": "number"}, BIG, "number", str(BIG)),
        ({"type": "number"}, "150 €", "json", '"150 €"'),
        ({"type": ["integer", "null"]}, None, "number", ""),
        ({"type": "boolean"}, True, "checkbox", "true"),
        ({"enum": ["a", 1]}, 1, "select", "1"),
        ({"enum": ["a", 1]}, "b", "json", '"b"'),
        ({"type": "array"}, [1], "json", "[1]"),
        ({}, 1.5, "number", "1.5"),
        ({}, {"a": None}, "json", '{"a":null}'),
    ],
)
def test_an_argument_has_the_field_of_its_type_and_an_unchanged_text_means_its_value(
    schema: dict[str, Any], value: Any, kind: str, text: str
) -> None:
    [argument] = arguments_of({"properties": {"it": schema}}, {"it": value})
    assert (argument.kind, field_text(argument, {"it": value})) == (kind, text)
    assert field_value(argument, text, {"it": value}) == value


def test_an_emptied_field_means_no_value_and_null_where_that_is_allowed() -> None:
    schema = {"properties": {"a": {"type": "number"}, "b": {"type": ["number", "null"]}, "c": {"type": "string"}}}
    original = {"a": 1, "b": 1, "c": "x"}
    arguments = arguments_of(schema, original)
    assert [field_value(argument, "", original) for argument in arguments] == [msgspec.UNSET, None, ""]
    assert [field_value(argument, "", {}) for argument in arguments] == [msgspec.UNSET] * 3


@pytest.mark.parametrize("text", ["1o", "true", '"1"', "1 2", "[" * 100_000])
def test_a_text_that_is_no_number_is_refused(text: str) -> None:
    [argument] = arguments_of({}, {"a": 1})
    with pytest.raises(ValueError, match="This is not a number"):
        field_value(argument, text, {"a": 1})


def form_of(calls: list[ToolCall], **changes: str) -> dict[str, str]:
    """Return what a browser sends for the forms of `calls`, with other texts for some fields."""
    form = dict[str, str]()
    for each in call_forms(calls, None, {}, {}):
        form |= {f"{each.name}.do": "refuse" if each.is_refused else "send", f"{each.name}.why": each.refusal}
        for field in each.fields or ([each.whole] if each.whole else []):
            if field.argument.kind != "checkbox" or field.text == "true":
                form[field.name] = field.text.replace("\n", "\r\n")
    return form | changes


def edits_of(calls: list[ToolCall], **changes: str) -> tuple[list[CallEdit], dict[str, str]]:
    reading = read_calls(calls, None, form_of(calls, **changes))
    assert reading is not None
    return reading.edits, dict(reading.faults)


def call(arguments: str, name: str = "call_1", **more: Any) -> ToolCall:
    return ToolCall(**({"id": name, "name": "pay", "kind": "function", "arguments": arguments} | more))


def test_a_form_that_is_sent_as_it_is_changes_nothing() -> None:
    schema = {"properties": {"z": {"type": "string"}, "a": {"type": "number"}, "on": {"type": "boolean"}}}
    texts = ["{}", '{"a":1.0,"z":"x\\r\\ny"}', '{"a":1e2,"b":{"c":[]},"on":false}', "not json", "[1]", ""]
    assert edits_of([call(text, schema=schema) for text in texts]) == ([], {})


def test_only_the_changed_call_is_edited_and_keeps_the_order_and_the_exact_values_of_the_rest() -> None:
    arguments = {"note": "x", "amount": 150, "big": BIG, "on": True}
    calls = [call(json.dumps(arguments)), call('{"amount":1}', "call_2")]
    edits, faults = edits_of(calls, **{"call.0.1": "100"})
    assert faults == {}
    assert [edit.id for edit in edits] == ["call_1"]
    assert list(edits[0].arguments.items()) == list((arguments | {"amount": 100}).items())


def test_a_fault_is_said_at_its_field() -> None:
    schema = {
        "properties": {"amount": {"type": "number", "maximum": 150}, "to": {"type": "string"}, "list": {}},
        "required": ["amount", "to"],
        "additionalProperties": False,
    }
    calls = [call('{"amount":150,"to":"A","list":[1],"more":1}', schema=schema)]
    edits, faults = edits_of(calls, **{"call.0.0": "151", "call.0.2": "[1"})
    assert edits[0].arguments["amount"] == 151
    assert set(faults) == {"call.0", "call.0.0", "call.0.2"}
    assert "150" in faults["call.0.0"]
    assert faults["call.0.2"].startswith("This is not JSON")
    assert "more" in faults["call.0"]
    _, faults = edits_of(calls, **{"call.0.0": ""})
    assert faults["call.0.0"] == "The tool needs a value here."


def test_a_refusal_needs_a_message_and_is_shown_again() -> None:
    calls = [call('{"amount":1}')]
    assert set(edits_of(calls, **{"call.0.do": "refuse"})[1]) == {"call.0.why"}
    edits, faults = edits_of(calls, **{"call.0.do": "refuse", "call.0.why": "Too much."})
    assert (edits, faults) == ([CallEdit(id="call_1", refuse="Too much.")], {})
    [form] = call_forms(calls, CallsEdit(tool_calls=edits), {}, {})
    assert (form.is_refused, form.refusal) == (True, "Too much.")


def test_images_and_sounds_are_found_wherever_a_request_has_them() -> None:
    data = "QUJD"
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/PNG;base64,{data}"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/svg+xml", "data": data}},
        {"type": "image_url", "image_url": {"url": "https://elsewhere.test/a.png"}},
        {"type": "text", "text": "see data:image/png;base64,QUJD here"},
    ]
    media = media_of(json.dumps({"messages": [{"role": "user", "content": parts}]}).encode())
    assert [(each.content_type, each.kind, each.content) for each in media] == [
        ("image/png", "image", b"ABC"),
        ("audio/wav", "sound", b"ABC"),
        ("image/svg+xml", "file", b"ABC"),
    ]
