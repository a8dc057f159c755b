"""Signals of answers: their content in all dialects, log-probabilities, and the JSON schema of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from signoff.core.dialects.answer import collect
from signoff.core.reviews.answers import read_answer
from signoff.core.reviews.logprobs import logprobs_of, with_logprobs, without_logprobs
from signoff.core.reviews.schema_check import meets_schema

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
CALL = {"name": "delete", "arguments": {"path": "/"}}
ARGUMENTS = json.dumps(CALL["arguments"])
TOOL_ANSWERS: dict[str, Any] = {
    "chat": {
        "choices": [
            {
                "message": {"content": "Bye", "tool_calls": [{"function": {"name": "delete", "arguments": ARGUMENTS}}]},
                "finish_reason": "length",
            }
        ]
    },
    "responses": {
        "object": "response",
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [
            {"type": "message", "content": [{"type": "output_text", "text": "Bye"}]},
            {"type": "function_call", "name": "delete", "arguments": ARGUMENTS},
        ],
    },
    "messages": {
        "type": "message",
        "content": [{"type": "text", "text": "Bye"}, {"type": "tool_use", "name": "delete", "input": {"path": "/"}}],
        "stop_reason": "max_tokens",
    },
}


@pytest.mark.parametrize("dialect", TOOL_ANSWERS)
def test_an_answer_reads_the_same_in_each_dialect(dialect: str) -> None:
    values = read_answer(json.dumps(TOOL_ANSWERS[dialect]).encode()).values
    assert values.pop("finish_reason") in {"length", "max_output_tokens", "max_tokens"}
    assert values == {
        "text": "Bye",
        "refusal": None,
        "tool_calls": [CALL],
        "length": 3,
        "empty": False,
        "truncated": True,
    }


REFUSALS: dict[str, Any] = {
    "chat": {"choices": [{"message": {"content": None, "refusal": "I cannot."}, "finish_reason": "stop"}]},
    "responses": {"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "I cannot."}]}]},
    "messages": {
        "type": "message",
        "content": [{"type": "text", "text": "I cannot."}],
        "stop_reason": "refusal",
    },
}


@pytest.mark.parametrize("dialect", REFUSALS)
def test_a_refusal_is_seen_in_each_dialect(dialect: str) -> None:
    assert read_answer(json.dumps(REFUSALS[dialect]).encode()).values["refusal"] == "I cannot."


def test_all_choices_count() -> None:
    choices = [{"message": {"content": text}, "finish_reason": end} for text, end in (("a", "stop"), ("b", "length"))]
    values = read_answer(json.dumps({"choices": choices}).encode()).values
    assert (values["text"], values["truncated"]) == ("a\nb", True)


@pytest.mark.parametrize(
    ("body", "text", "empty"),
    [(b'"plain"', "plain", False), (b'{"a":1}', '{"a":1}', False), (b'{"choices":[]}', "", True), (b'""', "", True)],
)
def test_an_answer_of_another_format_is_all_text(body: bytes, text: str, empty: bool) -> None:
    values = read_answer(body).values
    assert (values["text"], values["empty"]) == (text, empty)


def test_a_stream_reads_as_the_whole_answer() -> None:
    pieces = [{"content": "By"}, {"content": "e"}, {"tool_calls": [{"index": 0, "function": {"name": "delete"}}]}]
    events = [
        f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'logprobs': logprobs}]})}\n\n".encode()
        for delta, logprobs in zip(
            pieces, ({"content": [{"logprob": -1.0}]}, {"content": [{"logprob": -3.0}]}, None), strict=True
        )
    ]
    whole = collect([*events, b"data: [DONE]\n\n"]).body
    values = read_answer(whole).values
    assert (values["text"], values["tool_calls"][0]["name"]) == ("Bye", "delete")
    assert logprobs_of(whole) == [-1.0, -3.0]


@pytest.mark.parametrize(
    ("path", "body", "wish"),
    [
        (CHAT, {}, {"logprobs": True}),
        (CHAT, {"logprobs": False}, {"logprobs": True}),
        (CHAT, {"logprobs": True}, None),
        (COMPLETIONS, {}, {"logprobs": 1}),
        (COMPLETIONS, {"logprobs": 0}, None),
        (RESPONSES, {"include": ["x"]}, {"include": ["x", "message.output_text.logprobs"]}),
        (RESPONSES, {"include": ["message.output_text.logprobs"]}, None),
        (MESSAGES, {}, None),
        (CHAT, [1], None),
    ],
    ids=str,
)
def test_log_probabilities_are_wished_for_once(path: str, body: Any, wish: Any) -> None:
    changed = with_logprobs(path, json.dumps(body).encode())
    assert (None if changed is None else json.loads(changed)) == (None if wish is None else body | wish)


@pytest.mark.parametrize(
    ("answer", "without"),
    [
        (
            {"choices": [{"text": "a", "logprobs": {"token_logprobs": [None, -0.5]}}]},
            {"choices": [{"text": "a", "logprobs": None}]},
        ),
        (
            {"choices": [{"message": {}, "logprobs": {"content": [{"logprob": -0.5}], "refusal": None}}]},
            {"choices": [{"message": {}, "logprobs": None}]},
        ),
        (
            {"output": [{"content": [{"text": "a", "logprobs": [{"logprob": -0.5}]}]}]},
            {"output": [{"content": [{"text": "a", "logprobs": []}]}]},
        ),
    ],
    ids=["completions", "chat", "responses"],
)
def test_log_probabilities_are_read_and_taken_out_again(answer: Any, without: Any) -> None:
    body = json.dumps(answer).encode()
    assert logprobs_of(body) == [-0.5]
    assert json.loads(without_logprobs(body)) == without


def asks(schema: Any) -> bytes:
    """Return a chat request for JSON of a schema."""
    return json.dumps({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}).encode()


WHOLE = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
LIST = {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}
DOUBLING = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(60)} | {"a60": {}}


@pytest.mark.parametrize(
    ("request_body", "text", "expected"),
    [
        (asks(WHOLE), '{"a":1}', True),
        (asks(WHOLE), '{"a":"1"}', False),
        (asks(WHOLE), "no JSON", False),
        (b"{}", "no JSON", None),
        (b'{"response_format":{"type":"json_object"}}', "[]", False),
        (json.dumps({"text": {"format": {"type": "json_schema", "schema": WHOLE}}}).encode(), '{"a":1}', True),
        (
            json.dumps({"output_config": {"format": {"type": "json_schema", "schema": WHOLE}}}).encode(),
            '{"a":"1"}',
            False,
        ),
        (asks(LIST), '{"next":{"next":{}}}', True),
        (asks(LIST), '{"next":{"next":1}}', False),
        (asks({"$ref": "http://127.0.0.1:1/schema"}), "{}", False),
        (asks({"$ref": "file:///etc/passwd"}), "{}", False),
        (asks({"type": "nosuch"}), "{}", False),
        (asks({"$defs": DOUBLING, "$ref": "#/$defs/a0"}), "{}", False),
        (asks({"type": "string", "pattern": "^(a+)+$"}), json.dumps("a" * 100 + "!"), False),
    ],
)
def test_an_answer_is_checked_against_the_schema_of_its_request(
    request_body: bytes, text: str, expected: bool | None
) -> None:
    assert meets_schema(request_body, [text]) is expected
