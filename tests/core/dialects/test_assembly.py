"""Streams that servers cut in unusual ways, and the whole answers that they add up to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from signoff.core import sse
from signoff.core.api_paths import CHAT
from signoff.core.dialects.answer import answer_text, collect, completion_events
from signoff.core.dialects.stream_state import has_content, missing_end

Payload = dict[str, Any]


def raw(*payloads: Payload) -> list[bytes]:
    return [sse.event(json.dumps(payload).encode()) for payload in payloads]


def deltas(*members: Payload) -> list[bytes]:
    """Return a stream whose events have these deltas, and its end."""
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in members]
    events = [{"object": "chat.completion.chunk", "choices": [choice]} for choice in choices]
    return [*raw(*events, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), sse.DONE]


def message_of(events: list[bytes]) -> Payload:
    """Return the message that the events add up to, which must not change when it is streamed again."""
    body = collect(events).body
    again = collect(completion_events(body, with_usage=False)).body
    assert json.loads(again)["choices"] == json.loads(body)["choices"]
    return json.loads(body)["choices"][0]["message"]


def piece(name: str | None = None, arguments: Any = None, **more: Any) -> Payload:
    members = {"name": name, "arguments": arguments}
    return {"function": {key: value for key, value in members.items() if value is not None}} | more


# Deltas of calls of tools, and the calls that they add up to: names and arguments.
CALLS: dict[str, tuple[list[list[Payload]], list[tuple[str, str]]]] = {
    "no index": (
        [[piece("f", "", id="a")], [piece(arguments='{"x":')], [piece(arguments="1}")]],
        [("f", '{"x":1}')],
    ),
    "no index, two calls in turn": (
        [[piece("f", "", id="a")], [piece(arguments="{}")], [piece("g", "", id="b")], [piece(arguments='{"y":2}')]],
        [("f", "{}"), ("g", '{"y":2}')],
    ),
    "no index and no ids, two whole calls in one delta": (
        [[piece("f", "{}"), piece("f", "{}")]],
        [("f", "{}"), ("f", "{}")],
    ),
    "no index, and the id in every delta": (
        [
            [piece("f", "{", id="a"), piece("g", "{", id="b")],
            [piece(arguments="}", id="b")],
            [piece(arguments="}", id="a")],
        ],
        [("f", "{}"), ("g", "{}")],
    ),
    "the name and the id in every delta": (
        [[piece("f", '{"x"', index=0, id="a")], [piece("f", ":1}", index=0, id="a")]],
        [("f", '{"x":1}')],
    ),
    "the name in every delta, without ids": (
        [
            [piece("f", "", index=0)],
            [piece("f", '{"x"', index=0)],
            [piece("f", ":1}", index=0)],
            [piece("f", "", index=0)],
        ],
        [("f", '{"x":1}')],
    ),
    "another id in every delta": (
        [
            [piece("f", '{"x"', index=0, id="a")],
            [piece("f", ":1", index=0, id="b")],
            [piece(None, "}", index=0, id="c")],
        ],
        [("f", '{"x":1}')],
    ),
    "null and empty members": (
        [
            [piece("f", '{"x"', index=0, id="a", type="function")],
            [{"index": 0, "id": None, "type": None, "function": {"name": None, "arguments": ":1"}}],
            [{"index": 0, "id": "", "type": "", "function": {"name": "", "arguments": "}"}}],
        ],
        [("f", '{"x":1}')],
    ),
    "one index for all, without ids": (
        [[piece("f", '{"x":1}', index=0)], [piece("g", "{}", index=0)]],
        [("f", '{"x":1}'), ("g", "{}")],
    ),
    "one index for all, without ids and arguments": (
        [[piece("f", "", index=0, type="function")], [piece("g", "", index=0, type="function")]],
        [("f", ""), ("g", "")],
    ),
    "one index and one name for all, without ids": (
        [[piece("f", '{"x":1}', index=0)], [piece("f", '{"x":2}', index=0)]],
        [("f", '{"x":1}'), ("f", '{"x":2}')],
    ),
    "the name in pieces": (
        [[piece("get_", index=0, id="a")], [piece("time", index=0)], [piece(None, "{}", index=0)]],
        [("get_time", "{}")],
    ),
    "interleaved": (
        [
            [piece("f", "{", index=0, id="a"), piece("g", "{", index=1, id="b")],
            [piece(None, "}", index=1)],
            [piece(None, "}", index=0)],
        ],
        [("f", "{}"), ("g", "{}")],
    ),
    "an id that comes late": ([[piece("f", "{", index=0)], [piece(None, "}", index=0, id="a")]], [("f", "{}")]),
    "an index as a text": (
        [[piece("f", '{"x"', index="0", id="a")], [piece(None, ":1}", index="0")]],
        [("f", '{"x":1}')],
    ),
    "an index that is none": (
        [[piece("f", '{"x"', index=None, id="a")], [piece(None, ":1}", index={})]],
        [("f", '{"x":1}')],
    ),
    "arguments as an object": ([[piece("f", {"x": 1}, index=0)]], [("f", '{"x":1}')]),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_pieces_of_a_call_are_one_call(name: str) -> None:
    pieces, calls = CALLS[name]
    message = message_of(deltas({"role": "assistant", "content": None}, *({"tool_calls": each} for each in pieces)))
    functions = [call["function"] for call in message["tool_calls"]]
    assert [(function["name"], function.get("arguments", "")) for function in functions] == calls
    assert all("index" not in call for call in message["tool_calls"])


def test_a_function_call_of_older_completions_keeps_one_name() -> None:
    pieces = [{"name": "f", "arguments": '{"x"'}, {"name": "f", "arguments": ":1"}, {"name": None, "arguments": "}"}]
    message = message_of(deltas(*({"function_call": each} for each in pieces)))
    assert message["function_call"] == {"name": "f", "arguments": '{"x":1}'}


TEXT, THOUGHT = {"type": "text", "text": "four"}, {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        ([[THOUGHT], [TEXT]], "four"),
        ([[THOUGHT], [THOUGHT], "fo", "ur"], "four"),
        (["fo", [{"type": "text", "text": "ur"}]], "four"),
        ([[{"type": "text", "text": "fo"}], [{"type": "text", "text": "ur"}]], "four"),
        ([[THOUGHT]], None),
    ],
    ids=str,
)
def test_content_in_blocks_reads_as_its_text(contents: list[Any], text: str | None) -> None:
    events = deltas(*({"content": content} for content in contents))
    message_of(events)
    assert answer_text(collect(events).body) == text


def test_pieces_of_one_block_are_one_block() -> None:
    pieces = [[{"type": "thinking", "thinking": [{"type": "text", "text": text}]}] for text in ("h", "m")]
    assert message_of(deltas(*({"content": each} for each in [*pieces, [TEXT]])))["content"] == [THOUGHT, TEXT]


def event(data: str) -> bytes:
    return sse.event(data.encode())


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        ([r"so \ud83d", r"\ude00 it is"], "so \U0001f600 it is"),
        ([r"\uD83D\uDE00", r"\ud83d"], "\U0001f600\ufffd"),
        ([r"\ude00", r"\ud83d"], "\ufffd\ufffd"),
        ([r"\\ud83d", "x"], r"\ud83dx"),
    ],
)
def test_halves_of_a_character_are_joined(texts: list[str], whole: str) -> None:
    chat = [event(f'{{"choices": [{{"delta": {{"content": "{text}"}}}}]}}') for text in texts]
    assert answer_text(collect([*chat, sse.DONE]).body) == whole
    assert any(map(has_content, chat))
    response = [event(f'{{"type": "response.output_text.delta", "delta": "{text}"}}') for text in texts]
    assert answer_text(collect(response).body) == whole


CREATED = {
    "type": "response.created",
    "sequence_number": 0,
    "response": {"id": "r", "status": "in_progress", "output": []},
}
ADDED = {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "id": "m", "content": []}}
HELLO = [
    {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "item_id": "m", "delta": text}
    for text in ("he", "llo")
]
TEXT_DONE = {
    "type": "response.output_text.done",
    "output_index": 0,
    "content_index": 0,
    "item_id": "m",
    "text": "hello",
}
MESSAGE = {
    "type": "message",
    "id": "m",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "hello", "annotations": []}],
}
ITEM_DONE = {"type": "response.output_item.done", "output_index": 0, "item": MESSAGE}
CALL = {
    "type": "response.function_call_arguments.done",
    "output_index": 1,
    "item_id": "fc",
    "name": "f",
    "arguments": "{}",
}
EMPTY_END = {"type": "response.completed", "response": {"id": "r", "status": "completed", "output": []}}


@pytest.mark.parametrize(
    "events",
    [
        [CREATED, ADDED, *HELLO, ITEM_DONE],
        [CREATED, *HELLO],
        [CREATED, ADDED, *HELLO, TEXT_DONE],
        [*HELLO, TEXT_DONE],
        [
            {name: value for name, value in each.items() if not name.endswith("_index")}
            for each in [CREATED, ADDED, *HELLO]
        ],
        [CREATED, ADDED, *HELLO, ITEM_DONE, EMPTY_END],
    ],
)
def test_a_response_without_its_last_event_has_what_has_come(events: list[Payload]) -> None:
    whole = json.loads(collect([*raw(*events), sse.DONE]).body)
    assert (whole["status"], len(whole["output"])) == ("completed", 1)
    assert answer_text(json.dumps(whole).encode()) == "hello"


def test_a_call_in_a_response_without_its_item_is_an_item() -> None:
    output = json.loads(collect(raw(CREATED, ADDED, *HELLO, ITEM_DONE, CALL)).body)["output"]
    assert output[1] == {"type": "function_call", "id": "fc", "name": "f", "arguments": "{}", "status": "completed"}


STOPPED = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
OPEN = {"choices": [{"index": 1, "delta": {"content": "a"}, "finish_reason": None}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 1}}
STOP_REASON = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}


@pytest.mark.parametrize(
    ("payloads", "end"),
    [
        ([STOPPED], b"[DONE]"),
        ([STOPPED, USAGE], b"[DONE]"),
        ([OPEN, STOPPED, {"choices": [{"index": 1, "text": "", "finish_reason": "length"}]}], b"[DONE]"),
        ([OPEN, STOPPED], None),
        ([OPEN], None),
        ([USAGE], None),
        ([OPEN, USAGE], b"[DONE]"),
        ([OPEN, {"choices": [], "usage": None}], None),
        ([USAGE, OPEN], None),
        ([OPEN, USAGE, OPEN], None),
        ([], None),
        ([STOP_REASON], b"message_stop"),
        ([CREATED, ADDED, *HELLO, ITEM_DONE], b"response.completed"),
        ([CREATED, *HELLO, TEXT_DONE], b"response.completed"),
        ([CREATED, ADDED, *HELLO], None),
        ([CREATED], None),
    ],
)
def test_a_stream_without_its_last_event_is_whole_if_all_of_it_has_ended(
    payloads: list[Payload], end: bytes | None
) -> None:
    last = missing_end(raw(*payloads), has_mark=False)
    assert (last is None) == (end is None)
    assert end is None or (last is not None and end in last)


def test_the_last_event_of_a_response_has_the_response_and_the_next_number() -> None:
    last = missing_end(raw(CREATED | {"sequence_number": 7}, *HELLO), has_mark=True)
    assert last is not None
    payload = json.loads(sse.data_of(last))
    assert (payload["sequence_number"], payload["response"]["id"]) == (8, "r")
    assert answer_text(json.dumps(payload["response"]).encode()) == "hello"


def choice(delta: Payload, **more: Any) -> Payload:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": None} | more]}


SILENT = [
    choice({"role": "assistant", "content": ""}),
    choice({"role": "assistant", "content": None, "tool_calls": [], "refusal": None}),
    choice({}),
    USAGE,
    {"object": "chat.completion.chunk", "id": "c"},
    {},
    {"type": "ping"},
    {"type": "heartbeat"},
    {"type": "message_start", "message": {"content": []}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    CREATED,
    {"type": "response.in_progress", "response": {}},
    ADDED,
    {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
]
SPEAKING = [
    choice({"content": "a"}),
    choice({"reasoning_content": "a"}),
    choice({"tool_calls": [piece("f", "", index=0)]}),
    choice({}, finish_reason="stop"),
    {"choices": [{"text": "a"}]},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "name": "f"}},
    {"type": "content_block_delta", "delta": {"text": "a"}},
    {"type": "response.output_item.added", "item": {"type": "function_call", "name": "f"}},
    *HELLO,
    EMPTY_END,
    {"type": "speech.audio.delta", "audio": "AAA"},
    {"answer": 42},
]


@pytest.mark.parametrize("payload", SILENT, ids=str)
def test_an_event_before_the_first_content_is_no_content(payload: Payload) -> None:
    assert not has_content(raw(payload)[0])


@pytest.mark.parametrize("payload", SPEAKING, ids=str)
def test_an_event_with_content_is_content(payload: Payload) -> None:
    assert has_content(raw(payload)[0])


@pytest.mark.parametrize("payload", [{"status": "error"}, {"type": "queue", "position": 3}, {"answer": 42}], ids=str)
def test_an_unknown_event_is_no_content_where_the_format_is_known(payload: Payload) -> None:
    assert not has_content(raw(payload)[0], CHAT)
    assert has_content(raw(payload)[0], "/v1/audio/speech")


@pytest.mark.parametrize("payload", [*SILENT[:5], *SPEAKING[:-2]], ids=str)
def test_the_events_of_known_formats_are_told_apart_with_the_path_too(payload: Payload) -> None:
    assert has_content(raw(payload)[0], CHAT) is (payload in SPEAKING)


def test_events_that_keep_a_connection_open_are_no_part_of_the_answer() -> None:
    ping, text = raw({"type": "ping"}), deltas({"content": "hello"})
    assert collect(ping + text).body == collect(text).body


def test_a_message_in_place_of_a_delta_is_the_message() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "a", **piece("f", "{}")}]}
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    assert message_of([*raw(whole, {"choices": [{"index": 0, "delta": {}}]}), sse.DONE])["tool_calls"][0]["id"] == "a"


def test_a_call_whose_item_lacks_its_arguments_has_those_of_its_events() -> None:
    item = {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": ""}
    done = {"type": "response.output_item.done", "output_index": 1, "item": item}
    call = CALL | {"arguments": '{"x":1}'}
    output = json.loads(collect(raw(CREATED, ADDED, *HELLO, ITEM_DONE, call, done)).body)["output"]
    assert output[1] == item | {"arguments": '{"x":1}'}


def test_a_comment_is_no_content_and_the_end_is() -> None:
    assert [has_content(each) for each in (sse.comment(b"processing"), sse.DONE, b"data: words\n\n")] == [
        False,
        True,
        True,
    ]
