"""Tests of answers in the format of their endpoint: whole, as a stream, edited, and with their usage."""

from __future__ import annotations

import json
from typing import Any

import pytest

from signoff.core import sse
from signoff.core.api_paths import CHAT, COMPLETIONS, EDITS, EMBEDDINGS, RESPONSES
from signoff.core.dialects.answer import answer_text, collect, parse_answer, usage_of_body, with_text
from signoff.core.dialects.convert import convert_answer, stream_events
from signoff.core.dialects.reported_usage import parse_usage
from signoff.core.parse_cost import MAX_BYTES, MAX_CONTAINERS
from signoff.core.tokens import Usage, estimate_usage

USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [
        {"type": "output_text", "text": "Hello ", "annotations": []},
        {"type": "refusal", "refusal": "No."},
        {"type": "output_text", "text": "there", "annotations": [{"type": "url_citation"}]},
    ],
}
TOOL = {
    "id": "fc_1",
    "type": "function_call",
    "status": "completed",
    "call_id": "c",
    "name": "f",
    "arguments": '{"a": 1}',
}
THOUGHT = {"id": "rs_1", "type": "reasoning", "summary": [], "content": None}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "output": [THOUGHT, MESSAGE, TOOL],
    "usage": USAGE,
    "new": [1],
}
TEXTS = {
    "id": "cmpl-1",
    "object": "text_completion",
    "model": "m",
    "choices": [
        {"index": 0, "text": "one", "logprobs": {"tokens": ["one"]}, "finish_reason": "length"},
        {"index": 1, "text": "two", "logprobs": None, "finish_reason": "stop"},
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


def payloads(events: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(data) for event in events if (data := sse.data_of(event)) != b"[DONE]"]


@pytest.mark.parametrize(("path", "whole"), [(RESPONSES, RESPONSE), (COMPLETIONS, TEXTS)])
def test_a_split_answer_is_collected_unchanged(path: str, whole: dict[str, Any]) -> None:
    parts = list(stream_events(path, json.dumps(whole).encode(), with_usage=True))
    answer = collect(parts)
    assert json.loads(answer.body) == whole
    assert answer.usage == parse_answer(json.dumps(whole).encode()).usage


def test_a_response_is_streamed_with_the_events_that_clients_expect() -> None:
    events = payloads(list(stream_events(RESPONSES, json.dumps(RESPONSE).encode(), with_usage=False)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    part = ["content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
    refusal = ["content_part.added", "refusal.delta", "refusal.done", "content_part.done"]
    call = ["function_call_arguments.delta", "function_call_arguments.done"]
    item = ["output_item.added"], ["output_item.done"]
    assert kinds == [
        *["created", "in_progress"],
        *[*item[0], *item[1]],
        *[*item[0], *part, *refusal, *part, *item[1]],
        *[*item[0], *call, *item[1]],
        "completed",
    ]
    assert events[0]["response"]["output"] == []
    assert events[-1]["response"] == RESPONSE
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


@pytest.mark.parametrize("status", ["incomplete", "failed"])
def test_the_last_event_of_a_response_names_its_status(status: str) -> None:
    parts = stream_events(RESPONSES, json.dumps(RESPONSE | {"status": status}).encode(), with_usage=False)
    assert payloads(list(parts))[-1]["type"] == f"response.{status}"


def test_a_stream_includes_its_usage_only_on_request() -> None:
    body = json.dumps(TEXTS).encode()
    assert not any("usage" in event for event in payloads(list(stream_events(COMPLETIONS, body, with_usage=False))))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, EDITS])
@pytest.mark.parametrize("body", [b'"words"', b'{"choices":[{"text":"words"}]}'])
def test_a_bare_text_is_converted_to_the_format_of_the_endpoint(path: str, body: bytes) -> None:
    answer = convert_answer(path, body, "m")
    assert answer_text(answer) == "words"
    assert convert_answer(path, answer, "m") == answer
    if path == EDITS:
        return
    assert answer_text(collect(list(stream_events(path, answer, with_usage=False))).body) == "words"


@pytest.mark.parametrize("path", [EMBEDDINGS, "/v1/audio/speech"])
def test_an_answer_of_any_other_endpoint_is_unchanged(path: str) -> None:
    assert convert_answer(path, b'{ "a":1}', "m") == b'{ "a":1}'
    assert list(stream_events(path, b'{\n"a":1}', with_usage=False)) == [
        b'data: {"a":1}\n\n',
        sse.DONE,
    ]


def test_the_text_of_a_response_replaces_all_of_its_items() -> None:
    body = json.dumps(RESPONSE).encode()
    assert answer_text(body) == "Hello there"
    edited = json.loads(with_text(body, "signed"))
    assert answer_text(json.dumps(edited).encode()) == "signed"
    assert [item["type"] for item in edited["output"]] == ["message"]
    silent = json.dumps(RESPONSE | {"output": [TOOL]}).encode()
    assert answer_text(silent) is None
    assert answer_text(with_text(silent, "signed")) == "signed"


@pytest.mark.parametrize("output", [[{}], [{"type": "message"}], [{"type": "message", "content": "x"}], []])
def test_an_unusual_response_can_be_read_edited_and_streamed(output: list[Any]) -> None:
    body = json.dumps({"output": output}).encode()
    assert answer_text(body) is None
    assert answer_text(with_text(body, "signed")) == "signed"
    assert json.loads(collect(list(stream_events(RESPONSES, body, with_usage=False))).body) == {"output": output}


def test_the_usage_of_a_response_is_read_from_its_own_members() -> None:
    answer = parse_answer(json.dumps(RESPONSE).encode())
    assert answer.usage == Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)


def test_the_usage_of_a_stream_without_usage_is_estimated() -> None:
    request = json.dumps(
        {
            "messages": [
                {"role": "system", "content": "x" * 40},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "y" * 38}, {"image_url": {"url": "data:" + "z" * 999}}],
                },
            ]
        }
    )
    deltas = [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {}]
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    parts = [sse.event(json.dumps(event).encode()) for event in events]
    usage = collect([*parts, sse.DONE], request.encode()).usage
    assert usage == Usage(prompt_tokens=20, completion_tokens=2, total_tokens=22)


@pytest.mark.parametrize(
    ("usage_object", "tokens"),
    [
        ({"prompt_tokens": 9, "completion_tokens": None}, (9, 3)),
        ({"prompt_tokens": 9, "completion_tokens": None, "total_tokens": 14}, (9, 5)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": None}, (9, 2)),
        ({"input_tokens": None, "output_tokens": 2}, (0, 2)),
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, None),
        ({"seconds": 9}, None),
        (None, None),
    ],
)
def test_missing_counts_of_a_usage_are_estimated(
    usage_object: dict[str, Any] | None, tokens: tuple[int, int] | None
) -> None:
    answer = {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "x" * 12}}]}
    usage = parse_usage(json.dumps(answer | {"usage": usage_object}).encode())
    assert (usage and (usage.prompt_tokens, usage.completion_tokens)) == tokens


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ({"choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 12}}]}, 3),
        ({"choices": [{"text": "x" * 12, "finish_reason": "stop"}, {"text": "x" * 8, "logprobs": ["b" * 99]}]}, 5),
        ({"choices": [{"message": {"tool_calls": [{"id": "call_1", "function": {"arguments": "{}xx"}}]}}]}, 1),
        (RESPONSE | {"usage": None, "output": [MESSAGE]}, 4),
        ({"data": [{"b64_json": "x" * 999}]}, None),
        ([1], None),
    ],
)
def test_the_usage_of_an_answer_without_usage_is_estimated(answer: Any, tokens: int | None) -> None:
    request = json.dumps({"messages": [{"role": "user", "content": "y" * 20}]}).encode()
    usage = usage_of_body(json.dumps(answer).encode(), request)
    assert usage == (tokens and Usage(prompt_tokens=5, completion_tokens=tokens, total_tokens=5 + tokens))


@pytest.mark.parametrize("lists", [0, 10 * MAX_CONTAINERS])
def test_an_expensive_body_is_estimated_by_its_size_without_images_and_audio(lists: int) -> None:
    content: list[Any] = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * MAX_BYTES}},
        {"type": "input_audio", "input_audio": {"data": "A" * MAX_BYTES, "format": "wav"}},
        {"type": "text", "text": "x" * MAX_BYTES},
    ]
    request = {"messages": [{"role": "user", "content": content + [[]] * lists}], "other": "x" * MAX_BYTES}
    rest = len(json.dumps([[]] * lists)) if lists else 0
    assert estimate_usage(json.dumps(request).encode(), 0).prompt_tokens == pytest.approx(
        (MAX_BYTES + rest) / 4, rel=0.01
    )
    assert parse_usage(json.dumps({"usage": {"prompt_tokens": 1}, "data": "x" * 2 * MAX_BYTES}).encode()) == Usage(
        prompt_tokens=1
    )


@pytest.mark.parametrize(
    "request_body", [b"", b"[]", b'{"messages": 5}', b"{", b'{"input": ' + b"[" * 900 + b"]" * 900 + b"}"]
)
def test_the_usage_of_an_unusual_request_is_estimated(request_body: bytes) -> None:
    chunk = sse.event(b'{"choices": [{"index": 0, "text": "a"}]}')
    assert collect([chunk, sse.DONE], request_body).usage == Usage(completion_tokens=1, total_tokens=1)
