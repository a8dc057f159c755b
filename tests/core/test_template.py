"""Tests of templates: placeholders are found in the text, and never in the inserted values."""

from __future__ import annotations

import re
import tracemalloc
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.pipelines import template
from signoff.core.pipelines.template import placeholders
from signoff.errors import BadRequest

render_template = partial(template.render_template, max_bytes=20 * 2**20)
BRACED = st.text(alphabet="{}ab_1 \n\"'$%\\", max_size=30)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("this is {a_arg}", ("a_arg",)),
        ("{b} {a} {b}", ("b", "a")),
        ("{{a}}", ()),
        ("{{{a}}}", ("a",)),
        ("{{{{a}}}}", ()),
        ("{a}}", ("a",)),
        ("{1a} {_a} {} { a } {a b} {a-b} {a.b} {a!r} {a:>3} {0}", ()),
        ('{"key": {"inner": [1]}}', ()),
        ("{a {b}", ("b",)),
        ("{имя} {größe} {a1_}", ("имя", "größe", "a1_")),
        ("}{a}{", ("a",)),
    ],
)
def test_a_placeholder_is_a_name_in_braces(text: str, names: tuple[str, ...]) -> None:
    assert placeholders(text) == names


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("{a}", "1"),
        ("{{a}}", "{a}"),
        ("{{{a}}}", "{1}"),
        ("{a}}", "1}"),
        ("{ a } {} }", "{ a } {} }"),
        ('{"k": {"i": 1}}', '{"k": {"i": 1}'),
        ("{b}{a}", "{a}1"),
    ],
)
def test_values_replace_their_placeholders(text: str, out: str) -> None:
    assert render_template(text, {"a": "1", "b": "{a}"}) == out


@given(BRACED, BRACED)
def test_a_value_is_never_substituted_again(text: str, value: str) -> None:
    marked = render_template(text, dict.fromkeys(placeholders(text), "\0"))
    assert render_template(text, dict.fromkeys(placeholders(text), value)) == marked.replace("\0", value)


@given(st.text())
def test_doubled_braces_are_text(text: str) -> None:
    assert render_template(text.replace("{", "{{").replace("}", "}}"), {}) == text


@given(st.text(alphabet="ab \n$%\\\"'", max_size=20))
def test_a_text_without_braces_is_unchanged(text: str) -> None:
    assert (placeholders(text), render_template(text, {})) == ((), text)


@given(BRACED)
def test_every_placeholder_needs_a_value(text: str) -> None:
    names = placeholders(text)
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[ab]\w*", name)
        with pytest.raises(BadRequest, match=f"no value for {re.escape(name)}"):
            render_template(text, {other: "" for other in names if other != name})


def test_a_megabyte_is_rendered_in_one_pass() -> None:
    big = "{a}{{" * 200_000
    assert render_template("<{a}>", {"a": big}) == f"<{big}>"
    assert placeholders("{" * 1_000_000) == ()


@given(BRACED, BRACED)
def test_a_template_is_refused_exactly_above_its_maximum_size(text: str, value: str) -> None:
    values = dict.fromkeys(placeholders(text), value + "é")
    size_bytes = len(render_template(text, values).encode())
    assert len(template.render_template(text, values, max_bytes=size_bytes).encode()) == size_bytes
    with pytest.raises(BadRequest, match=f"at most {size_bytes - 1} bytes .*it would have {size_bytes}"):
        template.render_template(text, values, max_bytes=size_bytes - 1)


def test_a_template_that_is_too_large_is_never_rendered() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match=r"`max_body_bytes`.*it would have 349000000000\.") as refusal:
            template.render_template("{x}" * 349_000, {"x": "A" * 1_000_000}, max_bytes=20 * 2**20)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert refusal.value.status == 400
