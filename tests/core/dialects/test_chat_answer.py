"""Chat answers as the translations read them: calls, usage and the end, whole and in events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from signoff.core import sse
from signoff.core.dialects.assembly import assemble
from signoff.core.dialects.chat_answer import parse_chat_answer
from signoff.core.dialects.chat_stream import ChatStreamReader
from signoff.core.tokens import Usage

Call = dict[str, Any]


def call(arguments: Any = "", name: str = "", call_id: str = "", index: int | None = None) -> Call:
    """Return a delta of a call with the members that are not empty."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value}
    return (
        ({"index": index} if index is not None else {}) | ({"id": call_id} if call_id else {}) | {"function": function}
    )


TWO = [("call_1", "weather", '{"city":"Köln"}'), ("call_2", "clock", '{"zone":"CET"}')]
# The same two calls, as servers send them.
SPLITS: dict[str, list[list[Call]]] = {
    "by index": [
        [call(name="weather", call_id="call_1", index=0)],
        [call('{"city":', index=0)],
        [call('"Köln"}', index=0)],
        [call(name="clock", call_id="call_2", index=1)],
        [call('{"zone":"CET"}', index=1)],
    ],
    "whole": [[call(TWO[0][2], "weather", "call_1", 0), call(TWO[1][2], "clock", "call_2", 1)]],
    "without index": [
        [call(name="weather", call_id="call_1")],
        [call(TWO[0][2])],
        [call(name="clock", call_id="call_2")],
        [call(TWO[1][2])],
    ],
    "one index for all": [[call(TWO[0][2], "weather", "call_1", 0)], [call(TWO[1][2], "clock", "call_2", 0)]],
    "name in pieces": [
        [call(name="wea", call_id="call_1", index=0)],
        [call(name="ther", index=0)],
        [call(TWO[0][2], index=0)],
        [call(TWO[1][2], "clock", "call_2", 1)],
    ],
    "name and id in each delta": [
        [call('{"city":', "weather", "call_1", 0)],
        [call('"Köln"}', "weather", "call_1", 0)],
        [call(TWO[1][2], "clock", "call_2", 1)],
    ],
    "arguments as an object": [
        [call({"city": "Köln"}, "weather", "call_1", 0)],
        [call({"zone": "CET"}, "clock", "call_2", 1)],
    ],
    "arguments of the first call after the name of the second": [
        [call(name="weather", call_id="call_1", index=0), call(name="clock", call_id="call_2", index=1)],
        [call(TWO[0][2], index=0), call(TWO[1][2], index=1)],
    ],
}


def events(deltas: list[list[Call]]) -> list[bytes]:
    chunks: list[Any] = [{"choices": [{"index": 0, "delta": {"tool_calls": calls}}]} for calls in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    return [sse.event(json.dumps(chunk).encode()) for chunk in chunks]


@pytest.mark.parametrize("member", ["delta", "message"])
def test_a_call_that_is_no_list_is_read_from_a_delta_and_from_a_message(member: str) -> None:
    choice = {"index": 0, member: {"tool_calls": call("{}", "clock", "call_1")}}
    stream = [sse.event(json.dumps({"choices": [choice]}).encode()), *events([])]
    reader = ChatStreamReader()
    pieces = [piece for event in stream for piece in reader.feed(event)] + reader.finish()
    assert [(piece.kind, piece.text) for piece in pieces] == [("call", "clock"), ("arguments", "{}")]
    body, _ = assemble(stream)
    assert [(each.call_id, each.name, each.arguments) for each in parse_chat_answer(body).calls] == [
        ("call_1", "clock", "{}")
    ]


@pytest.mark.parametrize("name", SPLITS)
def test_a_translated_stream_and_a_collected_one_have_the_same_calls(name: str) -> None:
    stream = events(SPLITS[name])
    reader = ChatStreamReader()
    pieces = [piece for event in stream for piece in reader.feed(event)] + reader.finish()
    heads = [(piece.call_id, piece.text) for piece in pieces if piece.kind == "call"]
    texts = ["".join(each.text for each in pieces if (each.kind, each.number) == ("arguments", n)) for n in range(2)]
    assert [(*head, text) for head, text in zip(heads, texts, strict=True)] == TWO
    assert [tuple(each) for each in parse_chat_answer(assemble(stream)[0]).calls] == TWO
    assert (reader.has_calls, reader.end.finish_reason) == (True, "tool_calls")


def test_a_call_without_arguments_begins_at_the_end() -> None:
    reader = ChatStreamReader()
    pieces = [piece for event in events([[call(name="now", call_id="c", index=0)]]) for piece in reader.feed(event)]
    assert [(piece.kind, piece.text) for piece in [*pieces, *reader.finish()]] == [("call", "now")]
    assert not reader.finish()


COUNTS = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


@pytest.mark.parametrize(
    ("usage", "expected", "reasoning"),
    [
        pytest.param(
            {
                "prompt_tokens": 9,
                "completion_tokens": 4,
                "total_tokens": 13,
                "prompt_tokens_details": {"cached_tokens": 2},
            },
            Usage(prompt_tokens=9, completion_tokens=4, total_tokens=13, cached_tokens=2),
            0,
            id="openai",
        ),
        pytest.param(
            COUNTS | {"prompt_cache_hit_tokens": 5},
            Usage(prompt_tokens=9, completion_tokens=4, total_tokens=13, cached_tokens=5),
            0,
            id="deepseek",
        ),
        pytest.param(
            {"prompt_tokens": 9, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 3}},
            Usage(prompt_tokens=9, completion_tokens=4),
            3,
            id="reasoning",
        ),
        pytest.param(None, None, 0, id="none"),
    ],
)
def test_usage_is_read_as_everywhere(usage: Any, expected: Usage | None, reasoning: int) -> None:
    message = {"role": "assistant", "content": "x"}
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    end = parse_chat_answer(json.dumps(body).encode()).end
    assert (end.usage, end.reasoning_tokens) == (expected, reasoning)
    reader = ChatStreamReader()
    reader.feed(sse.event(json.dumps({"choices": [], "usage": usage}).encode()))
    assert (reader.end.usage, reader.end.reasoning_tokens) == (expected, reasoning)
