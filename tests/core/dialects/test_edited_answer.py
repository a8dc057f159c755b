"""Tests of edited answers: the caller gets them in the form and the envelope of the model's answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from signoff.core.api_paths import (
    CHAT,
    COMPLETIONS,
    EDITS,
    EMBEDDINGS,
    MESSAGES,
    MODERATIONS,
    PREDICT,
    RERANK,
    RESPONSES,
)
from signoff.core.dialects.answer import answer_text, collect
from signoff.core.dialects.convert import stream_events
from signoff.core.dialects.edited_answer import check_edit, edited_answer
from signoff.core.job import Job
from signoff.core.tokens import Usage
from signoff.errors import BadRequest
from support.stores import a_job

USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGE = {"role": "assistant", "content": "old", "refusal": None}
HEAD = {"id": "x-1", "created": 1694268190, "model": "gpt-4o-mini-2024", "system_fingerprint": "fp_4", "usage": USAGE}
CHOICE = {"index": 0, "message": MESSAGE, "logprobs": {"content": [{"token": "old"}]}, "finish_reason": "length"}
WHOLE_CHAT = HEAD | {"object": "chat.completion", "choices": [CHOICE]}
NEW_CHAT = {"index": 0, "message": MESSAGE | {"content": "new"}, "logprobs": None, "finish_reason": "stop"}
WHOLE_TEXT = HEAD | {"object": "text_completion", "choices": [{"index": 0, "text": "old", "finish_reason": "length"}]}
WHOLE_RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1694268190,
    "model": "gpt-4o-mini-2024",
    "status": "incomplete",
    "incomplete_details": {"reason": "max_output_tokens"},
    "output": [
        {"id": "rs_1", "type": "reasoning", "summary": []},
        {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "old"}]},
        {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    ],
    "usage": {"input_tokens": 9, "output_tokens": 12, "total_tokens": 21},
}
WHOLE_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": "old"}],
    "stop_reason": "max_tokens",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 12},
}
WHOLE: dict[str, dict[str, Any]] = {CHAT: WHOLE_CHAT, COMPLETIONS: WHOLE_TEXT, RESPONSES: WHOLE_RESPONSE}


def held(path: str, answer: Any, **more: Any) -> Job:
    """Return a job with an answer that waits for its review."""
    response = None if answer is None else json.dumps(answer).encode()
    return a_job(path=path, response=response, created_at=1_700_000_000_999_999, **more)


def edited(path: str, answer: Any, edit: Any, **more: Any) -> Any:
    return json.loads(edited_answer(held(path, answer, **more), json.dumps(edit).encode()))


@pytest.mark.parametrize(
    "choices",
    [
        pytest.param([CHOICE], id="text"),
        pytest.param([CHOICE | {"message": MESSAGE | {"content": None, "tool_calls": [CALL]}}], id="tool calls"),
        pytest.param([CHOICE, CHOICE | {"index": 1}], id="two choices"),
        pytest.param([CHOICE | {"message": MESSAGE | {"reasoning_content": "secret"}}], id="reasoning"),
        pytest.param([CHOICE | {"message": MESSAGE | {"audio": {"data": "UklG"}, "annotations": [{}]}}], id="audio"),
        pytest.param([CHOICE | {"content_filter_results": {}, "stop_reason": 3}], id="other members"),
    ],
)
def test_an_edited_chat_says_the_text_alone_in_the_envelope_of_the_model(choices: list[dict[str, Any]]) -> None:
    assert edited(CHAT, WHOLE_CHAT | {"choices": choices}, "new") == WHOLE_CHAT | {"choices": [NEW_CHAT]}


def test_an_edited_completion_keeps_its_envelope() -> None:
    expected = WHOLE_TEXT | {"choices": [{"index": 0, "text": "new", "finish_reason": "stop"}]}
    assert edited(COMPLETIONS, WHOLE_TEXT, "new") == expected
    assert edited(EDITS, {"object": "edit", "created": 7, "choices": [{"text": "old", "index": 0}]}, "new") == {
        "object": "edit",
        "created": 7,
        "choices": [{"index": 0, "text": "new"}],
    }


def test_an_edited_response_is_complete_and_keeps_its_envelope() -> None:
    answer = edited(RESPONSES, WHOLE_RESPONSE, "new")
    assert [item["type"] for item in answer["output"]] == ["message"]
    assert answer["output"][0]["id"] == "msg_1"
    assert answer_text(json.dumps(answer).encode()) == "new"
    assert (answer["status"], answer["incomplete_details"]) == ("completed", None)
    changed = {"output", "status", "incomplete_details"}
    assert {name: answer[name] for name in answer if name not in changed} == {
        name: value for name, value in WHOLE_RESPONSE.items() if name not in changed
    }


@pytest.mark.parametrize("path", WHOLE)
@pytest.mark.parametrize("known", ["of the answer", "of all attempts"])
def test_an_edited_answer_has_the_usage_that_the_job_knows(path: str, known: str) -> None:
    answer = {name: value for name, value in WHOLE[path].items() if name != "usage"}
    usage = {"usage": Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)}
    tokens = {"prompt_tokens": 3, "completion_tokens": 2}
    assert edited(path, answer, "new", **(usage if known == "of the answer" else tokens))["usage"]["total_tokens"] == 5
    assert "usage" not in edited(path, answer, "new")


@pytest.mark.parametrize("path", WHOLE)
def test_an_edited_answer_is_streamed_with_its_envelope_and_usage(path: str) -> None:
    answer = edited_answer(held(path, WHOLE[path]), b'"new"')
    stream = list(stream_events(path, answer, with_usage=True))
    whole, original = json.loads(collect(stream).body), json.loads(answer)
    assert answer_text(collect(stream).body) == "new"
    names = ("id", "model", "usage", "created_at" if path == RESPONSES else "created")
    assert [whole[name] for name in names] == [original[name] for name in names]


@pytest.mark.parametrize("path", WHOLE)
def test_a_whole_answer_is_taken_as_it_is(path: str) -> None:
    whole = json.dumps(WHOLE[path] | {"id": "mine"}).encode()
    assert edited_answer(held(path, WHOLE[path]), whole) == whole


def content_of(path: str) -> dict[str, Any]:
    """Return what a reviewer may write of a whole answer: its text, and nothing of its envelope."""
    name = {RESPONSES: "output", MESSAGES: "content"}.get(path, "choices")
    kind = {"type": "message"} if path == MESSAGES else {}
    return kind | {name: json.loads(edited_answer(held(path, WHOLE.get(path, WHOLE_MESSAGE)), b'"new"'))[name]}


@pytest.mark.parametrize("path", [*WHOLE, MESSAGES])
def test_a_whole_answer_without_an_envelope_keeps_that_of_the_model(path: str) -> None:
    original, edit = WHOLE.get(path, WHOLE_MESSAGE), content_of(path)
    assert edited(path, original, edit) == edited(path, original, "new")
    assert edited(path, original, edit | {"model": "mine"}) == edited(path, original, "new") | {"model": "mine"}
    without_usage = {name: value for name, value in original.items() if name != "usage"}
    usage = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
    assert edited(path, without_usage, edit, usage=usage) == edited(path, without_usage, "new", usage=usage)
    assert edited(path, original, edit, door="native") == edit


@pytest.mark.parametrize("path", [*WHOLE, MESSAGES])
def test_a_whole_answer_gets_an_envelope_if_there_is_none(path: str) -> None:
    for answer in (None, "old"):
        whole = edited(path, answer, content_of(path), prompt_tokens=1, completion_tokens=1)
        head = edited(path, answer, "new", prompt_tokens=1, completion_tokens=1)
        assert whole.keys() >= head.keys() - {"output_text"}
        assert whole["model"] == head["model"]
        assert answer_text(json.dumps(whole).encode()) == "new"


def test_a_whole_message_with_a_call_ends_with_it() -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    answer = edited(MESSAGES, WHOLE_MESSAGE, {"type": "message", "content": [call]})
    assert (answer["id"], answer["stop_reason"]) == ("msg_1", "tool_use")


@pytest.mark.parametrize("edit", [{"answer": 42}, [1, 2], 42, True, {"choices": "few"}], ids=json.dumps)
def test_other_json_becomes_the_text_of_an_answer_in_words(edit: Any) -> None:
    assert json.loads(edited(CHAT, WHOLE_CHAT, edit)["choices"][0]["message"]["content"]) == edit


@pytest.mark.parametrize("door", ["jobs", "native"])
def test_other_json_is_taken_as_it_is_where_any_payload_is(door: str) -> None:
    assert edited(CHAT, WHOLE_CHAT, {"answer": 42}, door=door) == {"answer": 42}
    assert edited(CHAT, WHOLE_CHAT, "new", door=door) == WHOLE_CHAT | {"choices": [NEW_CHAT]}


@pytest.mark.parametrize("answer", ["old", {"choices": []}, {"choices": [3]}, {"any": "thing"}], ids=json.dumps)
def test_an_answer_without_an_envelope_gets_one(answer: Any) -> None:
    whole = edited(CHAT, answer, "new", target="mine", prompt_tokens=1)
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "new"}
    assert (whole["object"], whole["created"], whole["model"]) == ("chat.completion", 1_700_000_000, "mine")
    assert whole["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize(
    ("path", "answer", "edit", "expected"),
    [
        pytest.param(PREDICT, {"label": "cat"}, {"label": "dog"}, {"label": "dog"}, id="any JSON"),
        pytest.param(PREDICT, "old", "new", "new", id="a text"),
        pytest.param(PREDICT, WHOLE_CHAT, "new", WHOLE_CHAT | {"choices": [NEW_CHAT]}, id="a chat by prediction"),
        pytest.param(EMBEDDINGS, {"data": [1]}, {"data": [2]}, {"data": [2]}, id="numbers"),
        pytest.param("/v1/audio/transcriptions", {"text": "old"}, {"text": "new"}, {"text": "new"}, id="passed on"),
        pytest.param(
            "/v1/audio/transcriptions",
            {"text": "old", "language": "en", "segments": [{"text": "old"}]},
            "new",
            {"text": "new", "language": "en"},
            id="a transcription",
        ),
    ],
)
def test_an_answer_of_no_known_form_is_replaced(path: str, answer: Any, edit: Any, expected: Any) -> None:
    assert edited(path, answer, edit) == expected


JSON_MODE = {"response_format": {"type": "json_object"}}
JSON_SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}}
RESPONSE_SCHEMA = {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}}


@pytest.mark.parametrize(
    ("path", "request_body"),
    [(CHAT, JSON_MODE), (CHAT, JSON_SCHEMA), (COMPLETIONS, JSON_MODE), (RESPONSES, RESPONSE_SCHEMA)],
)
def test_words_are_no_edit_of_an_answer_in_json(path: str, request_body: dict[str, Any]) -> None:
    job = held(path, WHOLE[path], body=json.dumps(request_body).encode())
    with pytest.raises(BadRequest, match="asks for an answer in JSON"):
        check_edit(job, b'"Sorry, no."')
    with pytest.raises(BadRequest, match="asks for an answer in JSON"):
        check_edit(job, json.dumps(WHOLE[path]).encode())
    # JSON can be sent, as a value or as a text, also in a whole answer
    in_json = json.dumps(WHOLE[path]).replace('"old"', '"{}"').encode()
    for edit in (b'{"a":1}', b'"{\\"a\\":1}"', in_json):
        check_edit(job, edit)


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.mark.parametrize(
    ("path", "request_body"),
    [
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": CITY}}}),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "n", "schema": CITY}}}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": CITY}}}),
        (MESSAGES, {"output_format": {"type": "json_schema", "schema": CITY}}),
    ],
)
def test_an_edit_fits_the_schema_that_the_request_asks_for(path: str, request_body: dict[str, Any]) -> None:
    job = held(path, WHOLE.get(path), body=json.dumps(request_body).encode())
    check_edit(job, b'{"city": "Bonn"}')
    check_edit(job, b'"{\\"city\\": \\"Bonn\\"}"')
    with pytest.raises(BadRequest, match=r"The answer at `\.city`: 3 is not of type"):
        check_edit(job, b'{"city": 3}')
    with pytest.raises(BadRequest, match=r"city.*fits the schema"):
        check_edit(job, b"{}")
    whole = edited_answer(job, b'{"city": 3}')
    with pytest.raises(BadRequest, match=r"\.city"):
        check_edit(job, whole)
    check_edit(job, edited_answer(job, b'{"city": "Bonn"}'))


def test_a_refusal_and_a_call_of_a_tool_have_no_text_to_check() -> None:
    job = held(CHAT, WHOLE_CHAT, body=json.dumps(JSON_SCHEMA | {"tools": [{"function": {"name": "f"}}]}).encode())
    for message in ({"content": None, "refusal": "I cannot."}, {"content": None, "tool_calls": [CALL]}):
        whole = WHOLE_CHAT | {"choices": [CHOICE | {"message": {"role": "assistant"} | message}]}
        check_edit(job, json.dumps(whole).encode())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
def test_the_answer_of_a_person_gets_an_envelope_and_estimated_usage(path: str) -> None:
    usage = Usage(prompt_tokens=5, total_tokens=5)
    answers = [
        json.loads(edited_answer(held(path, None, target="gpt", model="lawyer", usage=usage, id=name), b'"Forty-two."'))
        for name in ("j1", "j2")
    ]
    assert answer_text(json.dumps(answers[0]).encode()) == "Forty-two."
    assert [each["model"] for each in answers] == ["lawyer", "lawyer"]
    assert answers[0]["id"] != answers[1]["id"]
    sides = ("input", "output") if path in {MESSAGES, RESPONSES} else ("prompt", "completion")
    assert [answers[0]["usage"][f"{side}_tokens"] for side in sides] == [5, 3]


def test_an_approval_needs_an_answer() -> None:
    with pytest.raises(BadRequest, match="no answer yet"):
        check_edit(held(CHAT, None), None)
    check_edit(held(CHAT, None), b'"Words."')
    check_edit(held(CHAT, WHOLE_CHAT), None)


@pytest.mark.parametrize(
    "request_body",
    [b"{}", b"3", b'{"response_format":{"type":"text"}}', b'{"response_format":"json"}', b'{"text":{"format":null}}'],
)
def test_words_are_an_edit_of_any_other_answer(request_body: bytes) -> None:
    check_edit(held(CHAT, WHOLE_CHAT, body=request_body), b'"Sorry, no."')


@pytest.mark.parametrize("path", [EMBEDDINGS, MODERATIONS, RERANK])
def test_numbers_are_not_edited_in_words(path: str) -> None:
    with pytest.raises(BadRequest, match="has no text"):
        check_edit(held(path, {"data": []}), b'"words"')
    with pytest.raises(BadRequest, match="is no answer of"):
        check_edit(held(path, {"data": []}), b'{"text":[]}')
    check_edit(held(path, {"data": []}), b'{"data":[],"results":[]}')
