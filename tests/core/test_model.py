"""Which model answers to a name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signoff.core.model import Model, ModelIndex, ModelKind, upstream_name

ECHO = Model(name="echo", kind="echo")


def model(name: str, kind: ModelKind = "openai", *, default: bool = False, upstream_model: str | None = None) -> Model:
    return Model(name=name, kind=kind, default=default, upstream_model=upstream_model)


def found(name: str, *models: Model) -> str | None:
    answering = ModelIndex(models).find(name)
    return None if answering is None else answering.name


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-mini", "gpt-4*"),
        ("gpt-5", "gpt-*"),
        ("gpt-", "gpt-*"),
        ("gpt", "*"),
        ("echo/delay=1", "echo"),
        ("anything/else", "*"),
        ("", "*"),
    ],
)
def test_the_exact_name_wins_then_the_longest_prefix(name: str, answers: str) -> None:
    models = [model("*"), model("gpt-*"), model("gpt-4*"), model("gpt-4o"), ECHO]
    assert found(name, *models) == answers
    assert found(name, *reversed(models)) == answers


def test_a_name_that_nobody_has_is_not_found() -> None:
    assert found("nobody", ECHO, model("gpt-*")) is None
    assert ModelIndex([]).find("echo") is None


@pytest.mark.parametrize("suffix", ["delay=0.2", "status=503,tokens=5", "hang", "", "a/b"])
@pytest.mark.parametrize("name", ["echo", "mine", "team/mine", "team/mine/too"])
def test_any_model_of_kind_echo_takes_a_suffix(name: str, suffix: str) -> None:
    models = [model("team/other", "echo"), model("team", "openai"), model(name, "echo"), model("*")]
    assert found(f"{name}/{suffix}", *models) == name


@pytest.mark.parametrize("name", ["echo/\0", "gpt-\n", "gpt-\x7f", "\u200b"])
def test_nobody_has_a_name_that_cannot_be_printed(name: str) -> None:
    listing = ModelIndex([ECHO, model("gpt-*"), model("*")])
    assert listing.find(name) is None
    assert not listing.has_exact(name)


def test_the_longest_echo_takes_the_suffix() -> None:
    models = [model("e", "echo"), model("e/f", "echo")]
    assert found("e/f/hang", *models) == found("e/f/hang", *reversed(models)) == "e/f"
    assert found("e/hang", *models) == "e"


def test_an_echo_with_a_prefix_takes_whatever_begins_with_it() -> None:
    assert found("fake-a/hang", model("fake-*", "echo"), ECHO) == "fake-*"


def test_no_other_kind_takes_a_suffix() -> None:
    assert found("gpt/hang", model("gpt")) is None
    assert found("echoes/hang", ECHO) is None


@pytest.mark.parametrize(
    ("models", "default"),
    [
        ([ECHO, model("local"), model("marked", default=True)], "marked"),
        ([ECHO, model("local"), model("other")], "local"),
        ([model("other"), ECHO], "echo"),
        ([model("other")], None),
        ([], None),
    ],
)
def test_the_default_is_the_marked_one_else_local_else_echo(models: list[Model], default: str | None) -> None:
    chosen = ModelIndex(models).default()
    assert (chosen and chosen.name) == default


NAMES = st.text("ab/*-", max_size=5)


@settings(deadline=None)
@given(st.lists(NAMES, max_size=6), NAMES)
def test_whoever_answers_has_the_name_or_its_longest_prefix(names: list[str], asked: str) -> None:
    answering = found(asked, *(model(name) for name in names))
    if asked in names:
        assert answering == asked
        return
    fitting = [name for name in names if name.endswith("*") and asked.startswith(name[:-1])]
    assert (answering is None) is (not fitting)
    assert answering is None or len(answering) == max(len(name) for name in fitting)


def test_an_upstream_is_asked_for_its_own_name_else_for_the_callers() -> None:
    assert upstream_name(model("fast", upstream_model="gpt-4o-mini"), "fast") == "gpt-4o-mini"
    assert upstream_name(model("gpt-*"), "gpt-5") == "gpt-5"
