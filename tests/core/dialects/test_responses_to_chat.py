"""Translation of OpenAI's Responses API to and from chats, and completed streams, checked with the client's types."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import openai.types.responses
import pydantic
import pytest
from openai.lib.streaming.responses._responses import ResponseStreamState

from signoff.core import sse
from signoff.core.dialects.answer import answer_text, collect
from signoff.core.dialects.response_events import EventCompleter, complete_body, is_incomplete
from signoff.core.dialects.responses_to_chat import (
    ResponseTranslator,
    from_chat,
    is_translated,
    previous_response_id,
    to_chat,
)
from signoff.errors import BadRequest, ModelGarbled

EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(openai.types.responses.ResponseStreamEvent)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "parameters": SCHEMA, "strict": True}
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
REQUEST = b'{"model": "m", "input": "Hi", "instructions": "Be brief.", "temperature": 0}'


def chat_of(model: str = "m", **members: Any) -> dict[str, Any]:
    """Return the chat that a request with these members becomes."""
    return json.loads(to_chat(json.dumps({"model": "m", "input": "Hi"} | members).encode(), model))


@pytest.mark.parametrize(
    ("members", "chat"),
    [
        pytest.param({}, {"messages": [{"role": "user", "content": "Hi"}]}, id="text"),
        pytest.param(
            {"instructions": "Be brief.", "input": [{"role": "developer", "content": "D"}]},
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "system", "content": "D"}]},
            id="instructions",
        ),
        pytest.param({"max_output_tokens": 5, "temperature": 0}, {"max_tokens": 5, "temperature": 0}, id="sampling"),
        pytest.param({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}, id="effort"),
        pytest.param(
            {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}, id="streams have usage"
        ),
        pytest.param(
            {
                "input": [
                    {
                        "type": "message",
                        "role": "user",
                        "content": [
                            {"type": "input_text", "text": "This:"},
                            {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "low"},
                        ],
                    }
                ]
            },
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "This:"},
                            {
                                "type": "image_url",
                                "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"},
                            },
                        ],
                    }
                ]
            },
            id="image",
        ),
        pytest.param(
            {
                "input": [
                    {"role": "user", "content": "So?"},
                    {"type": "reasoning", "id": "rs_1", "summary": []},
                    {
                        "type": "message",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": "Let me look.", "annotations": []}],
                    },
                    {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
                    {"type": "function_call", "call_id": "b", "name": "g", "arguments": '{"y":2}'},
                    {"type": "function_call_output", "call_id": "a", "output": "1"},
                    {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
                ]
            },
            {
                "messages": [
                    {"role": "user", "content": "So?"},
                    {
                        "role": "assistant",
                        "content": "Let me look.",
                        "tool_calls": [
                            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                            {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"y":2}'}},
                        ],
                    },
                    {"role": "tool", "tool_call_id": "a", "content": "1"},
                    {"role": "tool", "tool_call_id": "b", "content": "2"},
                ]
            },
            id="calls and results of tools",
        ),
        pytest.param(
            {"tools": [{"type": "function"} | FUNCTION], "tool_choice": {"type": "function", "name": "weather"}},
            {
                "tools": [{"type": "function", "function": FUNCTION}],
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
            },
            id="tools",
        ),
        pytest.param(
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            id="schema of the answer",
        ),
        pytest.param(
            {"store": True, "include": ["x"], "truncation": "auto", "previous_response_id": None, "background": False},
            {"messages": [{"role": "user", "content": "Hi"}]},
            id="what a chat does not have is dropped",
        ),
    ],
)
def test_a_request_becomes_a_chat(members: dict[str, Any], chat: dict[str, Any]) -> None:
    translated = chat_of(**members)
    assert {name: translated.get(name) for name in chat} == chat
    assert translated.keys() <= chat.keys() | {"model", "messages"}


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}]}, "input_image"),
        ({"input": 5}, "valid"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
    ],
)
def test_a_request_for_what_a_chat_does_not_have_is_refused(members: dict[str, Any], word: str) -> None:
    with pytest.raises(BadRequest, match=word):
        chat_of(**members)


@pytest.mark.parametrize(
    ("previous", "response_id", "translated"),
    [
        ("resp_chat_1", "resp_chat_1", True),
        ("resp_1", "resp_1", False),
        (None, None, False),
        ({"id": "resp_chat_1"}, None, False),
    ],
)
def test_a_response_that_no_upstream_has_stored_is_known_by_its_id(
    previous: object, response_id: str | None, *, translated: bool
) -> None:
    body = json.dumps({"previous_response_id": previous}).encode()
    assert previous_response_id(body) == response_id
    assert response_id is None or is_translated(response_id) is translated


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}


@pytest.mark.parametrize(
    ("message", "finish", "kinds", "status"),
    [
        ({"content": "Hi"}, "stop", ["message"], "completed"),
        ({"content": "Hi"}, "length", ["message"], "incomplete"),
        ({"content": None, "refusal": "No."}, "content_filter", ["message"], "incomplete"),
        ({"content": "So", "tool_calls": [CALL, CALL]}, "tool_calls", ["message", *["function_call"] * 2], "completed"),
    ],
)
def test_a_completion_becomes_a_response(message: dict[str, Any], finish: str, kinds: list[str], status: str) -> None:
    body = {"created": 7, "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE}
    whole = openai.types.responses.Response.model_validate_json(from_chat(json.dumps(body).encode(), "n", "m", REQUEST))
    assert (whole.id, whole.created_at, whole.model, whole.status) == ("resp_n", 7, "m", status)
    assert (whole.instructions, whole.temperature) == ("Be brief.", 0)
    assert [item.type for item in whole.output] == kinds
    assert whole.output_text == (message["content"] or "")
    assert whole.usage is not None
    assert whole.usage.input_tokens_details.cached_tokens == 2
    assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.total_tokens) == (9, 4, 13)
    assert whole.incomplete_details is None or status == "incomplete"


def test_an_answer_that_is_no_completion_is_garbled() -> None:
    with pytest.raises(ModelGarbled):
        from_chat(b'{"choices": []}', "n", "m", REQUEST)


def chunk(delta: Any = None, finish: str | None = None, **more: Any) -> bytes:
    """Return an event of a chat stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return sse.event(json.dumps({"id": "c", "choices": choices} | more).encode())


def call_delta(arguments: str, **more: Any) -> dict[str, Any]:
    """Return a delta with more of the arguments of a call."""
    name = {"name": more.pop("name")} if "name" in more else {}
    return {"tool_calls": [{"function": {"arguments": arguments} | name} | more]}


@pytest.mark.parametrize(
    ("chunks", "text", "calls", "status"),
    [
        pytest.param(
            [chunk({"role": "assistant"}), chunk({"content": "Hel"}), chunk({"content": "lo"}, "stop")],
            "Hello",
            [],
            "completed",
            id="text",
        ),
        pytest.param([], "", [], "completed", id="nothing"),
        pytest.param([chunk({"content": "Hel"}, "length")], "Hel", [], "incomplete", id="too long"),
        pytest.param([chunk({"refusal": "No."}, "stop")], "", [], "completed", id="refusal"),
        pytest.param(
            [
                chunk({"content": "So: "}),
                chunk(call_delta("", index=0, id="a", name="f")),
                chunk(call_delta('{"y":2}', index=1, id="b", name="g")),
                chunk(call_delta('{"x":1}', index=0), "tool_calls"),
            ],
            "So: ",
            [("a", "f", '{"x":1}'), ("b", "g", '{"y":2}')],
            "completed",
            id="text, and two calls at the same time",
        ),
    ],
)
def test_a_chat_stream_becomes_a_stream_of_a_response(
    chunks: list[bytes], text: str, calls: list[Any], status: str
) -> None:
    stream = ResponseTranslator("n", "m", REQUEST, 7)
    chat = [*chunks, chunk(usage=USAGE), sse.DONE]
    events = [each for event in chat for each in stream.feed(event)] + stream.finish()
    whole = check_events(events)
    assert (whole.output_text, whole.status) == (text, status)
    assert [(each.call_id, each.name, each.arguments) for each in whole.output if each.type == "function_call"] == calls
    answer = collect(events)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 13
    assert (answer_text(answer.body) or "") == text


def check_events(events: Iterable[bytes]) -> Any:
    """Read the events as the official client does, and return the response that it has at the end."""
    payloads = [json.loads(sse.data_of(event)) for event in events]
    assert [payload["sequence_number"] for payload in payloads] == list(range(len(payloads)))
    state: Any = ResponseStreamState(input_tools=openai.omit, text_format=openai.omit)
    for event, payload in zip(events, payloads, strict=True):
        assert event.startswith(f"event: {payload['type']}\n".encode())
        state.handle_event(EVENT.validate_python(payload))
    return openai.types.responses.Response.model_validate(payloads[-1]["response"])


def lean_event(kind: str, **members: Any) -> bytes:
    """Return an event as llama.cpp sends it: without the positions of items and of itself."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | members)}\n\n".encode()


TEXT_PART = {"type": "output_text", "annotations": [], "logprobs": [], "text": "Hi"}
LEAN_MESSAGE = {"type": "message", "status": "completed", "id": "msg_1", "content": [TEXT_PART], "role": "assistant"}
LEAN_CALL = {"type": "function_call", "status": "completed", "call_id": "fc_1", "name": "f", "arguments": "{}"}
LEAN = {"id": "resp_1", "object": "response", "status": "in_progress"}
LEAN_EVENTS = [
    lean_event("response.created", response=LEAN),
    lean_event("response.in_progress", response=LEAN),
    lean_event("response.output_item.added", item=LEAN_MESSAGE | {"content": [], "status": "in_progress"}),
    lean_event("response.content_part.added", item_id="msg_1", part={"type": "output_text", "text": ""}),
    lean_event("response.output_text.delta", item_id="msg_1", delta="Hi"),
    lean_event("response.output_item.added", item=LEAN_CALL | {"arguments": "", "status": "in_progress"}),
    lean_event("response.function_call_arguments.delta", item_id="fc_1", delta="{}"),
    lean_event("response.output_text.done", item_id="msg_1", text="Hi"),
    lean_event("response.content_part.done", item_id="msg_1", part=TEXT_PART),
    lean_event("response.output_item.done", item=LEAN_MESSAGE),
    lean_event("response.function_call_arguments.done", item_id="fc_1", arguments="{}", name="f"),
    lean_event("response.output_item.done", item=LEAN_CALL),
    lean_event(
        "response.completed",
        response=LEAN
        | {"status": "completed", "model": "x", "created_at": 3, "output": [LEAN_MESSAGE, LEAN_CALL]}
        | {"usage": {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4}},
    ),
]


def test_a_stream_that_lacks_positions_is_completed() -> None:
    assert is_incomplete(LEAN_EVENTS[0])
    completer = EventCompleter("m", 7)
    whole = check_events([completer.feed(event) for event in LEAN_EVENTS])
    assert (whole.id, whole.model, whole.output_text) == ("resp_1", "x", "Hi")
    assert (whole.output[1].id, whole.output[1].call_id) == ("fc_1", "fc_1")


THOUGHTS = {"type": "reasoning", "summary": [{"type": "summary_text", "text": text} for text in "ab"]}
BARE_MESSAGE = {name: value for name, value in LEAN_MESSAGE.items() if name != "id"}
BARE_EVENTS = [
    lean_event("response.created", response=LEAN),
    lean_event("response.output_item.added", item={"type": "reasoning", "id": None, "summary": []}),
    lean_event("response.reasoning_summary_part.added", part={"type": "summary_text", "text": ""}),
    lean_event("response.reasoning_summary_text.delta", delta="a"),
    lean_event("response.reasoning_summary_part.added", part={"type": "summary_text", "text": ""}),
    lean_event("response.reasoning_summary_text.delta", delta="b"),
    lean_event("response.reasoning_summary_text.done", text="b"),
    lean_event("response.output_item.done", item=THOUGHTS),
    lean_event("response.output_item.added", item=BARE_MESSAGE | {"content": [], "status": "in_progress"}),
    lean_event("response.content_part.added", part={"type": "output_text", "text": ""}),
    lean_event("response.output_text.delta", delta="Hi"),
    lean_event(
        "response.output_text.annotation.added",
        annotation={"type": "url_citation", "url": "https://x", "title": "X", "start_index": 0, "end_index": 2},
        annotation_index=0,
    ),
    lean_event("response.output_item.added", item=LEAN_CALL | {"arguments": "", "status": "in_progress"}),
    lean_event("response.function_call_arguments.delta", delta="{}"),
    lean_event("response.output_text.done", item_id="", text="Hi"),
    lean_event("response.content_part.done", part=TEXT_PART),
    lean_event("response.output_item.done", item=BARE_MESSAGE),
    lean_event("response.function_call_arguments.done", arguments="{}", name="f"),
    lean_event("response.output_item.done", item=LEAN_CALL),
    lean_event("response.completed", response=LEAN | {"status": "completed", "output": []}),
]
IDS = ["item_0", "item_1", "fc_1"]


def test_an_item_without_an_id_has_the_same_id_and_position_in_all_of_its_events() -> None:
    completer, output = EventCompleter("m", 7), [THOUGHTS, BARE_MESSAGE, LEAN_CALL]
    last = lean_event("response.completed", response=LEAN | {"status": "completed", "output": output})
    events = [completer.feed(event) for event in [*BARE_EVENTS[:-1], last]]
    whole = check_events(events)
    payloads = [json.loads(sse.data_of(event)) for event in events]
    ids = [payload.get("item_id") or payload["item"]["id"] for payload in payloads[1:-1]]
    assert ids == [*["item_0"] * 7, *["item_1"] * 4, *["fc_1"] * 2, *["item_1"] * 3, *["fc_1"] * 2]
    assert [IDS[payload["output_index"]] for payload in payloads[1:-1]] == ids
    assert [item.id for item in whole.output] == IDS
    assert [payload["summary_index"] for payload in payloads if "summary_index" in payload] == [0, 0, 1, 1, 1]
    assert whole.output_text == "Hi"


def test_items_keep_the_ids_and_positions_that_their_server_gives() -> None:
    completer = EventCompleter("m", 7)
    added = completer.feed(lean_event("response.output_item.added", output_index=3, item=BARE_MESSAGE))
    other = completer.feed(lean_event("response.output_item.added", output_index=4, item=LEAN_CALL | {"id": "c"}))
    delta = completer.feed(lean_event("response.output_text.delta", output_index=3, delta="Hi"))
    done = completer.feed(lean_event("response.output_item.done", item=LEAN_MESSAGE))
    first, second, third, fourth = (json.loads(sse.data_of(event)) for event in (added, other, delta, done))
    assert (first["item"]["id"], second["item"]["id"], third["item_id"]) == ("item_3", "c", "item_3")
    assert (fourth["output_index"], fourth["item"]["id"]) == (3, "msg_1")


def test_items_with_one_index_for_all_count_their_own_parts() -> None:
    completer = EventCompleter("m", 7)
    for name in ("a", "b"):
        completer.feed(lean_event("response.output_item.added", output_index=0, item=BARE_MESSAGE | {"id": name}))
        event = lean_event("response.content_part.added", output_index=0, part={"type": "output_text", "text": ""})
        payload = json.loads(sse.data_of(completer.feed(event)))
        assert (payload["item_id"], payload["content_index"]) == (name, 0)


def test_pieces_of_items_that_nothing_announces_are_numbered_by_kind() -> None:
    completer = EventCompleter("m", 7)
    kinds = ["reasoning_text.delta", "output_text.delta", "output_text.done", "function_call_arguments.delta"]
    events = [completer.feed(lean_event(f"response.{kind}", delta="x")) for kind in kinds]
    assert [json.loads(sse.data_of(event))["output_index"] for event in events] == [0, 1, 1, 2]


def test_other_events_stay_as_they_are() -> None:
    completer = EventCompleter("m", 7)
    for event in (sse.comment(b"x"), sse.DONE, sse.event(b'{"type": "error"}'), sse.event(b"[1]")):
        assert completer.feed(event) == event
        assert not is_incomplete(event)


def test_a_complete_stream_is_seen_as_such() -> None:
    assert not is_incomplete(ResponseTranslator("n", "m", REQUEST, 7).finish()[0])


def test_a_whole_response_is_completed_and_others_stay_as_they_are() -> None:
    lean = json.dumps(LEAN | {"output": [LEAN_MESSAGE, LEAN_CALL], "status": "completed", "model": "x"}).encode()
    whole = openai.types.responses.Response.model_validate_json(complete_body(lean, "m", 7))
    assert (whole.id, whole.model, whole.created_at, whole.tools) == ("resp_1", "x", 7, [])
    complete = from_chat(b'{"choices": [{"message": {"content": "Hi"}}]}', "n", "m", REQUEST)
    for body in (complete, b"[1]", b'{"error": null}', b'{"output": 5}'):
        assert complete_body(body, "m", 7) == body
