"""Tests of the grammar of pipelines: texts that parse, positions of errors, and the resulting tree."""

from __future__ import annotations

import json
import string
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.pipelines.grammar import MAX_CALLS, MAX_CHARACTERS, MAX_DEPTH, arguments_of, calls_of, parse
from signoff.core.pipelines.tree import Arg, Call, Constant, Name
from signoff.errors import BadPipeline
from support.pipeline_cases import PIPELINES

NAMES = st.text(string.ascii_letters + string.digits + "_é", min_size=1, max_size=8).filter(
    lambda text: text[0] in string.ascii_letters + "é" and text not in {"true", "false", "null"}
)
LITERALS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.builds(Constant, LITERALS) | st.builds(Name, NAMES)


def calls(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    args = st.lists(st.builds(Arg, values, st.none() | NAMES), max_size=4)
    return st.builds(lambda name, args: Call(name=name, args=tuple(args)), NAMES, args)


TREES = calls(st.recursive(VALUES, calls, max_leaves=12))


def text_of(value: Any) -> str:
    """Return the text of a tree."""
    match value:
        case Constant(literal):
            return json.dumps(literal, ensure_ascii=False)
        case Name(name):
            return name
        case Call():
            args = [(f"{arg.name} = " if arg.name else "") + text_of(arg.value) for arg in value.args]
            return f"{value.name}({', '.join(args)})"


def without_positions(call: Any) -> Any:
    """Return the tree with all positions set to 0."""
    if not isinstance(call, Call):
        return call
    return Call(name=call.name, args=tuple(Arg(without_positions(arg.value), arg.name) for arg in call.args))


@pytest.mark.parametrize("text", PIPELINES["parses"])
def test_a_pipeline_parses(text: str) -> None:
    assert text_of(parse(text)).replace(" ", "") == text.replace("-1.5e3", "-1500.0").replace(" ", "")


@pytest.mark.parametrize("text", PIPELINES["does_not_parse"])
def test_an_invalid_pipeline_is_refused_with_a_position(text: str) -> None:
    with pytest.raises(BadPipeline) as raised:
        parse(text)
    error = raised.value
    assert 0 <= error.at <= len(text)
    assert (error.line, error.column) == (1, error.at + 1)
    assert f"(line 1, column {error.column})" in error.message
    assert (error.status, error.code) == (400, "bad_pipeline")


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("x(", 2, "unexpected end"),
        ("x(y) + 1", 5, "unexpected '+'"),
        ("x(123=z)", 5, "unexpected '='; expected ) or a comma"),
        ('f("abc)', 2, "unterminated string"),
        ('f("\\ud800")', 2, "is not a JSON string"),
        ('f("\\x")', 2, "is not a JSON string"),
        ("f(1e999)", 2, "is not a JSON number"),
        ("f(" + "1" * 500 + ")", 2, "more than 400 digits"),
        ("f(007)", 3, "unexpected"),
        ("n" * 101 + "()", 0, "longer than 100 characters"),
    ],
)
def test_an_error_has_the_position_of_its_character(text: str, at: int, words: str) -> None:
    with pytest.raises(BadPipeline) as raised:
        parse(text)
    assert raised.value.at == at
    assert words.lower() in raised.value.message.lower()


def test_an_error_has_its_line_and_column() -> None:
    with pytest.raises(BadPipeline, match=r"line 3, column 4") as raised:
        parse("f(\n a,\n b c)")
    assert (raised.value.at, raised.value.line, raised.value.column) == (10, 3, 4)


@given(TREES)
def test_the_text_of_a_tree_parses_to_the_same_tree(tree: Call) -> None:
    assert without_positions(parse(text_of(tree))) == tree


@given(st.text(alphabet='ab("),=1.-e\\ \n{}', max_size=40))
def test_any_text_parses_or_is_refused_with_a_position(text: str) -> None:
    try:
        tree = parse(text)
    except BadPipeline as error:
        position = error.at
        assert 0 <= position <= len(text)
    else:
        assert without_positions(parse(text_of(tree))) == without_positions(tree)


def test_a_call_has_its_start_position() -> None:
    text = "outer(\n  inner(x),\n  y = inner(1))"
    assert [text[call.at :].partition("(")[0] for call in calls_of(parse(text))] == ["outer", "inner", "inner"]
    assert [call.at for call in calls_of(parse(text))] == [0, 9, 25]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("f(b, a, b)", ("b", "a")),
        ("f(g(x = y), y, z)", ("y", "z")),
        ("f(1, true, null)", ()),
        ("f(truex, nullify)", ("truex", "nullify")),
        ("f(g(h(d), c), b)", ("d", "c", "b")),
    ],
)
def test_arguments_are_listed_in_the_order_of_their_first_use(text: str, names: tuple[str, ...]) -> None:
    assert arguments_of(parse(text)) == names


def nested(depth: int) -> str:
    return "a(" * depth + ")" * depth


def wide(count: int) -> str:
    return f"a({','.join(['b()'] * (count - 1))})"


def test_depth_size_and_number_of_calls_are_bounded() -> None:
    assert len(calls_of(parse(nested(MAX_DEPTH)))) == MAX_DEPTH
    assert len(calls_of(parse(wide(MAX_CALLS)))) == MAX_CALLS
    for text in (nested(MAX_DEPTH + 1), wide(MAX_CALLS + 1), f'f("{"x" * MAX_CHARACTERS}")'):
        with pytest.raises(BadPipeline, match=r"more than|longer than"):
            parse(text)


@pytest.mark.parametrize("unit", ["(", "a(", 'a("', "a(b,", '"', "a(1", "\\", 'f("\\\\', "a(-", " ", "a=", ")", "é("])
def test_any_text_of_the_maximum_size_is_parsed_in_time_and_without_recursion(unit: str) -> None:
    text = (unit * MAX_CHARACTERS)[:MAX_CHARACTERS]
    began = time.process_time()
    with pytest.raises(BadPipeline):
        parse(text)
    assert time.process_time() - began < 5
