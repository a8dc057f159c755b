"""Tests of the request that a prompt sends to its model: values are inserted as plain text."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.api_paths import CHAT, COMPLETIONS, EMBEDDINGS, PREDICT, RESPONSES
from signoff.core.pipelines import render
from signoff.core.pipelines.arguments import parse_arguments
from signoff.core.pipelines.composed import Prompt
from signoff.core.pipelines.render import placeholder_values
from signoff.errors import BadRequest

render_request = partial(render.render_request, max_bytes=20 * 2**20)
ONE = Prompt(name="one", body="Say {x}!", user_id=1)
TWO = Prompt(name="two", body="{a}{b}{a}", user_id=1)
TEXT = st.text(st.characters(codec="utf-8"))


def message_of(prompt: Prompt, body: Any, path: str = CHAT) -> str:
    """Return the content of the only message that the model receives."""
    _, request = render_request(prompt, "m", path, json.dumps(body).encode())
    [message] = json.loads(request)["messages"]
    assert message.keys() == {"role", "content"}
    assert message["role"] == "user"
    return message["content"]


def chat(content: Any) -> dict[str, Any]:
    return {"model": "one", "messages": [{"role": "user", "content": content}]}


@given(TEXT)
def test_any_text_reaches_the_model_unchanged(text: str) -> None:
    assert message_of(ONE, chat(json.dumps({"x": text}))) == f"Say {text}!"
    if not text.lstrip().startswith("{"):
        assert message_of(ONE, chat(text)) == f"Say {text}!"
    assert message_of(ONE, chat([{"type": "text", "text": text}, {"type": "text", "text": "."}])) == f"Say {text}.!"


@given(TEXT, TEXT)
def test_values_are_not_searched_for_placeholders(one: str, other: str) -> None:
    for a, b in [(one, other), ("{b}", one), ("{{a}}", "{a}")]:
        assert message_of(TWO, chat(json.dumps({"a": a, "b": b}))) == a + b + a


def test_a_megabyte_of_hostile_text_becomes_one_message() -> None:
    text = '{x}{{"}\\"\n' * 100_000
    assert message_of(ONE, chat(text[1:])) == f"Say {text[1:]}!"


def test_other_members_of_a_request_are_unchanged() -> None:
    messages = b'"messages": [{"role": "user", "content": "go"}]'
    body = b'{"temperature": 1.0, %s, "seed": 12345678901234567890, "x": {"a":  1}}' % messages
    path, request = render_request(ONE, "m", CHAT, body)
    assert path == CHAT
    assert request.startswith(b'{"temperature":1.0,"seed":12345678901234567890,"x":{"a":  1},"model":"m","messages":')


@pytest.mark.parametrize(
    ("path", "body", "asked_at", "member", "content"),
    [
        (CHAT, chat("go"), CHAT, "messages", [{"role": "user", "content": "Say go!"}]),
        (COMPLETIONS, {"prompt": "go"}, COMPLETIONS, "prompt", "Say go!"),
        (RESPONSES, {"input": "go"}, RESPONSES, "input", "Say go!"),
        (RESPONSES, {"input": [{"role": "user", "content": "go"}]}, RESPONSES, "input", "Say go!"),
        (PREDICT, {"x": "go"}, CHAT, "messages", [{"role": "user", "content": "Say go!"}]),
        (PREDICT, "go", CHAT, "messages", [{"role": "user", "content": "Say go!"}]),
        (PREDICT, ["go", 1.0], CHAT, "messages", [{"role": "user", "content": 'Say ["go", 1.0]!'}]),
        (PREDICT, {"x": [1, None]}, CHAT, "messages", [{"role": "user", "content": "Say [1, null]!"}]),
    ],
)
def test_the_text_is_in_the_member_that_the_endpoint_uses(
    path: str, body: Any, asked_at: str, member: str, content: Any
) -> None:
    request_path, request = render_request(ONE, "m", path, json.dumps(body).encode())
    assert request_path == asked_at
    assert json.loads(request) == {"model": "m", member: content}


def test_a_missing_argument_is_named() -> None:
    for body in ({}, {"y": 1}, {"model": "one"}):
        with pytest.raises(BadRequest, match="no value for x"):
            render_request(ONE, "m", PREDICT, json.dumps(body).encode())


def test_the_last_user_message_counts() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "last"},
        {"role": "assistant", "content": "b"},
    ]
    assert message_of(ONE, {"messages": messages}) == "Say last!"


@pytest.mark.parametrize(
    ("prompt", "text"),
    [(TWO, "text"), (TWO, "{}"), (TWO, '{"a": 1}'), (TWO, '{"a": 1, "b": 2, "c": 3}'), (TWO, "{" * 100_000), (TWO, "")],
    ids=lambda value: str(value)[:10],
)
def test_wrong_arguments_are_refused_with_the_expected_ones(prompt: Prompt, text: str) -> None:
    with pytest.raises(BadRequest, match="'two' takes a and b, as the members of one JSON object"):
        placeholder_values(prompt, text)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBEDDINGS, {"input": "go"}),
        ("/v1/audio/speech", {"input": "go"}),
        (CHAT, chat([{"type": "image_url", "image_url": {"url": "data:,"}}])),
        (CHAT, chat([])),
    ],
)
def test_a_prompt_is_refused_at_other_endpoints_and_without_text(path: str, body: Any) -> None:
    with pytest.raises(BadRequest):
        render_request(ONE, "m", path, json.dumps(body).encode())


def test_a_prompt_is_refused_before_it_grows_beyond_its_maximum() -> None:
    bomb = Prompt(name="bomb", body="{x}" * 20_000, user_id=1)
    with pytest.raises(
        BadRequest, match=r"at most 1000000 bytes \(setting `max_body_bytes`\); it would have 400000000"
    ):
        render.render_request(bomb, "m", CHAT, json.dumps(chat("A" * 20_000)).encode(), max_bytes=1_000_000)


@pytest.mark.parametrize("value", ["1e999", "9" * 5000, "-1e999"], ids=lambda value: value[:9])
def test_a_number_out_of_range_is_refused_for_prompts_and_pipelines(value: str) -> None:
    body = f'{{"messages": [{{"role": "user", "content": [{value}]}}], "more": {value}}}'.encode()
    with pytest.raises(BadRequest, match="out of range"):
        render_request(ONE, "m", CHAT, body)
    with pytest.raises(BadRequest, match="out of range"):
        parse_arguments(body, ("x",))
