"""Tests of the choice of a model by its name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signoff.core.model import Model, ModelIndex, ModelKind, upstream_name

ECHO = Model(name="echo", kind="echo")


def model(name: str, kind: ModelKind = "openai", *, default: bool = False, upstream_model: str | None = None) -> Model:
    return Model(name=name, kind=kind, default=default, upstream_model=upstream_model)


def name_of_answering(name: str, *models: Model) -> str | None:
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
    assert name_of_answering(name, *models) == answers
    assert name_of_answering(name, *reversed(models)) == answers


def test_an_unknown_name_is_not_found() -> None:
    assert name_of_answering("nobody", ECHO, model("gpt-*")) is None
    assert ModelIndex([]).find("echo") is None


@pytest.mark.parametrize("suffix", ["delay=0.2", "status=503,tokens=5", "hang", "", "a/b"])
@pytest.mark.parametrize("name", ["echo", "mine", "team/mine", "team/mine/too"])
def test_any_model_of_kind_echo_takes_a_suffix(name: str, suffix: str) -> None:
    models = [model("team/other", "echo"), model("team", "openai"), model(name, "echo"), model("*")]
    assert name_of_answering(f"{name}/{suffix}", *models) == name


@pytest.mark.parametrize("name", ["echo/\0", "gpt-\n", "gpt-\x7f", "\u200b"])
def test_an_unprintable_name_is_not_found(name: str) -> None:
    index = ModelIndex([ECHO, model("gpt-*"), model("*")])
    assert index.find(name) is None
    assert not index.has_exact(name)


def test_the_echo_with_the_longest_name_takes_the_suffix() -> None:
    models = [model("e", "echo"), model("e/f", "echo")]
    assert name_of_answering("e/f/hang", *models) == name_of_answering("e/f/hang", *reversed(models)) == "e/f"
    assert name_of_answering("e/hang", *models) == "e"


def test_an_echo_with_a_wildcard_takes_every_name_with_its_prefix() -> None:
    assert name_of_answering("fake-a/hang", model("fake-*", "echo"), ECHO) == "fake-*"


def test_no_other_kind_takes_a_suffix() -> None:
    assert name_of_answering("gpt/hang", model("gpt")) is None
    assert name_of_answering("echoes/hang", ECHO) is None


@pytest.mark.parametrize(
    ("models", "default"),
    [
        ([ECHO, model("local"), model("marked", default=True)], "marked"),
        ([ECHO, model("local"), model("other")], "local"),
        ([model("other"), ECHO], None),
        ([model("other")], None),
        ([], None),
    ],
)
def test_the_default_is_the_marked_one_else_local_and_never_echo(models: list[Model], default: str | None) -> None:
    chosen = ModelIndex(models).default()
    assert (chosen and chosen.name) == default


NAMES = st.text("ab/*-", max_size=5)


@settings(deadline=None)
@given(st.lists(NAMES, max_size=6), NAMES)
def test_the_answering_model_has_the_name_or_its_longest_prefix(names: list[str], requested: str) -> None:
    answering = name_of_answering(requested, *(model(name) for name in names))
    if requested in names:
        assert answering == requested
        return
    matching = [name for name in names if name.endswith("*") and requested.startswith(name[:-1])]
    assert (answering is None) is (not matching)
    assert answering is None or len(answering) == max(len(name) for name in matching)


def test_the_upstream_name_is_the_configured_one_or_that_of_the_caller() -> None:
    assert upstream_name(model("fast", upstream_model="gpt-4o-mini"), "fast") == "gpt-4o-mini"
    assert upstream_name(model("gpt-*"), "gpt-5") == "gpt-5"
