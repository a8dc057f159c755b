"""Tests of the check of pipelines: names, arguments, recursion and size."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from signoff.core.pipelines.check import MAX_NESTED, Callee, bind_arguments, check_calls, parameter_names
from signoff.core.pipelines.composed import Pipeline, Prompt
from signoff.core.pipelines.function import Function, Param
from signoff.core.pipelines.grammar import parse
from signoff.errors import BadPipeline
from support.pipeline_cases import PIPELINES


def a_prompt(name: str, body: str) -> Prompt:
    return Prompt(name=name, body=body, user_id=1)


def a_pipeline(name: str, body: str) -> Pipeline:
    return Pipeline(name=name, body=body, tree=parse(body), user_id=1)


def a_function(name: str, *params: str) -> Function:
    """Return a function; a parameter that ends in `=` has a default."""
    parameters = tuple(Param(name=param.rstrip("="), has_default=param.endswith("=")) for param in params)
    return Function(name=name, params=parameters)


def callees_of_cases() -> dict[str, Callee]:
    """Return everything that the shared cases call, by name."""
    known: dict[str, Callee] = {name: a_prompt(name, body) for name, body in PIPELINES["prompts"].items()}
    for name, source in PIPELINES["functions"].items():
        definition: Any = ast.parse(source).body[0]
        known[name] = a_function(name, *(arg.arg for arg in definition.args.args))
    return known


CASES = callees_of_cases()
KNOWN: dict[str, Callee] = {
    "none": a_prompt("none", "Hello"),
    "one": a_prompt("one", "Hello {name}"),
    "two": a_prompt("two", "{greeting} {name}"),
    "f": a_function("f", "x", "y="),
    "p1": a_pipeline("p1", "one(who)"),
    "p2": a_pipeline("p2", "two(greeting, name)"),
}


def messages(text: str, known: dict[str, Callee] | None = None, own_name: str | None = None) -> list[str]:
    try:
        check_calls(text, parse(text), (KNOWN if known is None else known).get, own_name=own_name)
    except BadPipeline as error:
        message = error.message.rpartition(" (line ")[0]
        return [message[0].lower() + message[1:]]
    return []


@pytest.mark.parametrize("case", PIPELINES["runs"], ids=lambda case: case["pipeline"])
def test_a_pipeline_that_runs_passes_the_check(case: dict[str, Any]) -> None:
    tree = parse(case["pipeline"])
    check_calls(case["pipeline"], tree, CASES.get)
    assert list(parameter_names(a_pipeline("p", case["pipeline"]))) == list(case["args"])


@pytest.mark.parametrize("text", PIPELINES["refused_at_save_or_run"])
def test_a_pipeline_with_a_wrong_call_is_refused_with_a_position(text: str) -> None:
    with pytest.raises(BadPipeline) as raised:
        check_calls(text, parse(text), CASES.get)
    assert (raised.value.at, raised.value.line, raised.value.column) == (0, 1, 1)
    assert f"`{text.partition('(')[0]}`" in raised.value.message


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("none()", {}),
        ("one(anything)", {"name": "anything"}),
        ("one(name=anything)", {"name": "anything"}),
        ("two(greeting=a, name=b)", {"greeting": "a", "name": "b"}),
        ("two(name, greeting)", {"name": "name", "greeting": "greeting"}),
        ("two(name=greeting, greeting=name)", {"name": "greeting", "greeting": "name"}),
        ("two(name, greeting=other)", {"name": "name", "greeting": "other"}),
        ("f(a)", {"x": "a"}),
        ("f(y, x)", {"x": "y", "y": "x"}),
        ("f(y=a, x=b)", {"y": "a", "x": "b"}),
        ("f(a, y=b)", {"x": "a", "y": "b"}),
        ("p1(anything)", {"who": "anything"}),
        ("p2(name, greeting)", {"name": "name", "greeting": "greeting"}),
    ],
)
def test_each_value_is_bound_to_its_argument(text: str, fits: dict[str, str]) -> None:
    call = parse(text)
    assert {name: value.name for name, value in bind_arguments(call, KNOWN[call.name]).items()} == fits  # type: ignore[union-attr]
    assert messages(text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none(a)", "`none` takes no arguments, not 1"),
        ("one()", "`one` lacks name"),
        ("one(a, b)", "`one` takes 1 argument, not 2"),
        ("one(other=a)", "`one` has no argument 'other'; it takes name"),
        ("two(a, b)", "`two` takes greeting and name; write NAME=VALUE for each argument"),
        ('two("Hi", name)', "`two` takes greeting and name; write NAME=VALUE for each argument"),
        ("two(one(a), name)", "`two` takes greeting and name; write NAME=VALUE for each argument"),
        ("two(name)", "`two` lacks greeting"),
        ("two(name, name=x)", "`two` gets 'name' twice"),
        ("f()", "`f` lacks x"),
        ("f(a, b, c)", "`f` takes 2 arguments, not 3"),
        ("f(a, x=b)", "`f` gets 'x' twice"),
        ("f(x=a, b)", "`f` has an argument without a name after one with a name; move it to the front"),
        ("f(a, z=b)", "`f` has no argument 'z'; it takes x and y"),
        ("p1()", "`p1` lacks who"),
        ("nobody()", "there is no prompt, function or pipeline `nobody`"),
        ("f(nobody(a))", "there is no prompt, function or pipeline `nobody`"),
    ],
)
def test_the_error_of_a_wrong_call_is_explained(text: str, message: str) -> None:
    assert messages(text) == [message]


def test_the_first_error_has_the_position_of_its_call() -> None:
    text = "f(\n  one(),\n  y=nobody(x))"
    with pytest.raises(BadPipeline, match=r"lacks name \(line 2, column 3\)"):
        check_calls(text, parse(text), KNOWN.get)


def test_a_recursive_pipeline_is_refused() -> None:
    known = KNOWN | {"a": a_pipeline("a", "b(x)"), "b": a_pipeline("b", "one(c(x))"), "c": a_pipeline("c", "one(x)")}
    assert messages("a(x)", known) == []
    assert messages("a(x)", known, own_name="c") == ["`a` cannot run: `b` cannot run: `c` calls itself: c → a → b → c"]
    assert messages("itself(x)", known | {"itself": a_pipeline("itself", "one(x)")}, own_name="itself") == [
        "`itself` calls itself: itself → itself"
    ]
    looping = known | {"c": a_pipeline("c", "a(x)")}
    assert "a → b → c → a" in messages("a(x)", looping)[0]


def test_a_pipeline_that_calls_a_broken_pipeline_is_refused() -> None:
    known = KNOWN | {"broken": a_pipeline("broken", "one(gone(x))")}
    assert messages("one(broken(x))", known) == ["`broken` cannot run: there is no prompt, function or pipeline `gone`"]


def test_the_nesting_of_pipelines_is_bounded() -> None:
    chain = KNOWN | {"s0": a_pipeline("s0", "one(x)")}
    for number in range(1, 2 * MAX_NESTED):
        chain[f"s{number}"] = a_pipeline(f"s{number}", f"s{number - 1}(x)")
    assert messages(f"s{MAX_NESTED - 1}(x)", chain) == []
    for number in range(MAX_NESTED, 2 * MAX_NESTED):
        assert f"pipelines are nested more than {MAX_NESTED} deep" in messages(f"s{number}(x)", chain)[0]


def test_the_number_of_calls_through_nested_pipelines_is_bounded() -> None:
    doubling = KNOWN | {"d0": a_pipeline("d0", "f(x)")}
    for number in range(1, MAX_NESTED):
        doubling[f"d{number}"] = a_pipeline(f"d{number}", f"f(d{number - 1}(x), d{number - 1}(x))")
    assert messages("d5(x)", doubling) == []
    assert "more than 10000 calls" in messages(f"d{MAX_NESTED - 1}(x)", doubling)[0]
