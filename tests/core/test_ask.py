"""Tests of the chat request that any enqueued JSON becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signoff.core.ask import as_chat


def chat_body(payload: Any) -> dict[str, Any]:
    return json.loads(as_chat(json.dumps(payload).encode()))


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        ("What is 2 + 2?", user("What is 2 + 2?")),
        ("", user("")),
        ("Grüße 世界 👩‍💻 \u0000\n", user("Grüße 世界 👩‍💻 \u0000\n")),
        ({"input": "hi"}, user("hi")),
        ({"input": ""}, user("")),
        ({"prompt": "hi"}, user("hi")),
        ({"input": "hi", "prompt": "unused"}, user("hi")),
        ({"input": "hi", "messages": None}, user("hi")),
        (
            {"model": "m", "input": "hi", "temperature": 0.1, "seed": 2**70, "stop": ["a"], "user": None},
            user("hi", model="m", temperature=0.1, seed=2**70, stop=["a"], user=None),
        ),
    ],
)
def test_a_text_becomes_a_user_message_and_other_members_stay(payload: Any, body: dict[str, Any]) -> None:
    assert chat_body(payload) == body


@pytest.mark.parametrize(
    "payload",
    [
        b"5",
        b"-0.5",
        b"true",
        b"null",
        b"[1, [2, {}]]",
        b"{}",
        b'{"city": "K\xc3\xb6ln", "days": 3}',
        b'{"input": 5}',
        b'{"input": null, "prompt": null}',
        b'{"input": ["a", "b"], "model": "m"}',
        b'{"nested": {"input": "hi", "messages": []}}',
    ],
)
def test_any_other_json_becomes_a_message_unchanged(payload: bytes) -> None:
    assert json.loads(as_chat(payload)) == user(payload.decode())


@pytest.mark.parametrize(
    "payload",
    [
        b'{ "messages" : [ {"role": "user", "content": "hi"} ], "x": 1e2 }',
        b'{"messages": [], "input": 5}',
        b'{"messages": [], "input": "hi"}',
        b'{"messages": "not a list: the model shall say so"}',
    ],
)
def test_a_chat_body_is_passed_on_unchanged(payload: bytes) -> None:
    assert as_chat(payload) == payload


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_any_json_value_becomes_a_message_without_loss(value: Any) -> None:
    [message] = chat_body(value)["messages"]
    assert message["role"] == "user"
    assert message["content"] == value or json.loads(message["content"]) == value


@settings(deadline=None)
@given(st.text(), st.dictionaries(st.text().filter(lambda name: name not in {"input", "prompt", "messages"}), JSON))
def test_other_members_beside_the_text_are_kept(text: str, members: dict[str, Any]) -> None:
    assert chat_body({"input": text, **members}) == user(text, **members)


@settings(deadline=None)
@given(JSON)
def test_conversion_to_a_chat_body_is_idempotent(value: Any) -> None:
    once = as_chat(json.dumps(value).encode())
    assert as_chat(once) == once
