"""Translation of Anthropic's Messages API to and from chats, checked with the types of the official client."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import anthropic.types
import pydantic
import pytest

from signoff.core import sse
from signoff.core.api_paths import MESSAGES
from signoff.core.dialects import messages
from signoff.core.dialects.answer import answer_text, collect, with_text
from signoff.core.dialects.convert import convert_answer, stream_events
from signoff.core.dialects.messages_to_chat import MessageTranslator, from_chat, to_chat
from signoff.errors import BadRequest, ModelGarbled

EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(anthropic.types.RawMessageStreamEvent)
USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
PIXEL = {"type": "base64", "media_type": "image/png", "data": "aGk="}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}
TOOL_USE = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Köln"}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 2}}


def chat_of(model: str = "m", **members: Any) -> dict[str, Any]:
    """Return the chat that a request with these members becomes."""
    body = {"model": "m", "max_tokens": 5, "messages": [USER]} | members
    return json.loads(to_chat(json.dumps(body).encode(), model))


@pytest.mark.parametrize(
    ("members", "chat"),
    [
        pytest.param({}, {"model": "m", "messages": [USER], "max_tokens": 5}, id="plain"),
        pytest.param(
            {"system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]},
            {"messages": [{"role": "system", "content": "Be brief.\nBe kind."}, USER]},
            id="system in blocks",
        ),
        pytest.param({"stop_sequences": ["END"]}, {"stop": ["END"]}, id="stop sequences"),
        pytest.param({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}, id="sampling"),
        pytest.param({"metadata": {"user_id": "u1"}}, {"user": "u1"}, id="user"),
        pytest.param(
            {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}, id="streams have usage"
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "image", "source": PIXEL}]}]},
            {"messages": [{"role": "user", "content": [IMAGE_PART]}]},
            id="image",
        ),
        pytest.param(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "This:", "cache_control": {"type": "ephemeral"}},
                            {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
                            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "T"}},
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
                            {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                            {"type": "text", "text": "T"},
                        ],
                    }
                ]
            },
            id="text, address of an image, document",
        ),
        pytest.param(
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "Hm", "signature": "s"},
                            {"type": "text", "text": "Let me look."},
                            TOOL_USE,
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "call_1", "content": "rain"},
                            {
                                "type": "tool_result",
                                "tool_use_id": "call_2",
                                "is_error": True,
                                "content": [{"type": "text", "text": "no"}, {"type": "image", "source": PIXEL}],
                            },
                            {"type": "text", "text": "So?"},
                        ],
                    },
                ]
            },
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": "Let me look.",
                        "tool_calls": [CALL],
                    },
                    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
                    {"role": "tool", "tool_call_id": "call_2", "content": "Error: no"},
                    {"role": "user", "content": [IMAGE_PART, {"type": "text", "text": "So?"}]},
                ]
            },
            id="calls and results of tools; thoughts are dropped",
        ),
        pytest.param(
            {
                "tools": [{"name": "weather", "description": "D", "input_schema": SCHEMA}],
                "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            },
            {
                "tools": [
                    {"type": "function", "function": {"name": "weather", "description": "D", "parameters": SCHEMA}}
                ],
                "tool_choice": "required",
                "parallel_tool_calls": False,
            },
            id="tools",
        ),
        pytest.param(
            {"tools": [{"name": "w", "input_schema": SCHEMA}], "tool_choice": {"type": "tool", "name": "w"}},
            {"tool_choice": {"type": "function", "function": {"name": "w"}}},
            id="one tool",
        ),
        pytest.param(
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
                }
            },
            id="schema of the answer",
        ),
        pytest.param(
            {"thinking": {"type": "enabled", "budget_tokens": 9}, "top_k": 3, "service_tier": "auto", "new": 1},
            {"model": "m", "messages": [USER], "max_tokens": 5},
            id="what a chat does not have is dropped",
        ),
    ],
)
def test_a_request_becomes_a_chat(members: dict[str, Any], chat: dict[str, Any]) -> None:
    translated = chat_of(**members)
    assert {name: translated.get(name) for name in chat} == chat
    assert translated.keys() <= chat.keys() | {"model", "messages", "max_tokens", "tools"}


@pytest.mark.parametrize("model", ["gpt-5-mini", "o3", "openai/gpt-5", "o4-mini"])
def test_reasoning_models_of_openai_get_the_maximum_under_its_new_name(model: str) -> None:
    assert chat_of(model)["max_completion_tokens"] == 5
    assert "max_tokens" not in chat_of(model)


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]}, "container_upl"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "file",
        ),
        ({"messages": "Hi"}, "valid"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
    ],
)
def test_a_request_for_what_a_chat_does_not_have_is_refused(members: dict[str, Any], word: str) -> None:
    with pytest.raises(BadRequest, match=word):
        chat_of(**members)


@pytest.mark.parametrize(
    ("message", "finish", "content", "stop_reason"),
    [
        ({"content": "Hi"}, "stop", [{"type": "text", "text": "Hi"}], "end_turn"),
        ({"content": "Hi"}, "length", [{"type": "text", "text": "Hi"}], "max_tokens"),
        ({"content": None, "refusal": "No."}, "content_filter", [{"type": "text", "text": "No."}], "refusal"),
        ({"content": [{"type": "text", "text": "Hi"}]}, None, [{"type": "text", "text": "Hi"}], "end_turn"),
        ({"content": None, "tool_calls": [CALL]}, "tool_calls", [TOOL_USE], "tool_use"),
        ({"content": "", "tool_calls": [CALL]}, "stop", [TOOL_USE], "tool_use"),
        (
            {"content": "So", "tool_calls": [{"function": {"name": "f", "arguments": '{"cut'}}]},
            "length",
            [
                {"type": "text", "text": "So"},
                {"type": "tool_use", "id": "toolu_n_0", "name": "f", "input": {"arguments": '{"cut'}},
            ],
            "max_tokens",
        ),
    ],
)
def test_a_completion_becomes_a_message(
    message: dict[str, Any], finish: str | None, content: list[Any], stop_reason: str
) -> None:
    body = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE}
    translated = json.loads(from_chat(json.dumps(body).encode(), "n", "m"))
    anthropic.types.Message.model_validate(translated)
    assert (translated["id"], translated["model"]) == ("msg_n", "m")
    assert (translated["content"], translated["stop_reason"]) == (content, stop_reason)
    usage = translated["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (7, 2, 4)


@pytest.mark.parametrize("body", [b"[]", b'{"choices": []}', b'{"choices": [{"message": 5}]}', b'"Hi"'])
def test_an_answer_that_is_no_completion_is_garbled(body: bytes) -> None:
    with pytest.raises(ModelGarbled):
        from_chat(body, "n", "m")


def chunk(delta: Any = None, finish: str | None = None, **more: Any) -> bytes:
    """Return an event of a chat stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return sse.event(json.dumps({"id": "c", "choices": choices} | more).encode())


def call_delta(arguments: str, **more: Any) -> dict[str, Any]:
    """Return a delta with more of the arguments of a call."""
    name = {"name": more.pop("name")} if "name" in more else {}
    return {"tool_calls": [{"function": {"arguments": arguments} | name} | more]}


STREAMS = {
    "text": [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hel"}),
        sse.comment(b"still here"),
        chunk({"content": "lo"}),
        chunk({}, "stop"),
        chunk(usage=USAGE),
        sse.DONE,
    ],
    "no events but the end": [sse.DONE],
    "reasoning is dropped": [chunk({"reasoning_content": "Hm"}), chunk({"content": "Hello"}, "stop"), sse.DONE],
    "text, then two calls": [
        chunk({"content": "So: "}),
        chunk(call_delta("", index=0, id="a", name="f")),
        chunk(call_delta('{"x":', index=0)),
        chunk(call_delta("1}", index=0)),
        chunk(call_delta('{"y":2}', index=1, id="b", name="g")),
        chunk({}, "tool_calls"),
        sse.DONE,
    ],
    "pieces of a call without index": [
        chunk(call_delta("", id="a", name="f")),
        chunk(call_delta('{"x":')),
        chunk(call_delta("1}"), "tool_calls"),
        sse.DONE,
    ],
    "a character in two halves": [
        sse.event(rb'{"choices": [{"delta": {"content": "Hello \ud83d"}}]}'),
        sse.event(rb'{"choices": [{"delta": {"content": "\ude00!"}}]}'),
        sse.event(rb'{"choices": [{"delta": {"content": "\ude00"}}]}'),
        sse.DONE,
    ],
    "a name in every piece": [
        chunk(call_delta('{"x":', index=0, id="a", name="f")),
        chunk(call_delta("1}", index=0, id="a", name="f"), "stop"),
        sse.DONE,
    ],
    "two whole calls with one index": [
        chunk(call_delta('{"x":1}', index=0, name="f")),
        chunk(call_delta('{"y":2}', index=0, name="g"), "tool_calls"),
        sse.DONE,
    ],
}
F, G = {"name": "f", "input": {"x": 1}}, {"name": "g", "input": {"y": 2}}


@pytest.mark.parametrize(
    ("name", "text", "calls", "stop_reason"),
    [
        ("text", "Hello", [], "end_turn"),
        ("no events but the end", None, [], "end_turn"),
        ("reasoning is dropped", "Hello", [], "end_turn"),
        ("a character in two halves", "Hello 😀!\ufffd", [], "end_turn"),
        ("text, then two calls", "So: ", [F, G], "tool_use"),
        ("pieces of a call without index", None, [F], "tool_use"),
        ("a name in every piece", None, [F], "tool_use"),
        ("two whole calls with one index", None, [F, G], "tool_use"),
    ],
)
def test_a_chat_stream_becomes_a_stream_of_a_message(
    name: str, text: str | None, calls: list[Any], stop_reason: str
) -> None:
    stream = MessageTranslator("n", "m")
    events = [each for event in STREAMS[name] for each in stream.feed(event)] + stream.finish()
    check_events(events)
    answer = collect(events, b'{"messages": []}')
    whole = json.loads(answer.body)
    anthropic.types.Message.model_validate(whole)
    assert answer_text(answer.body) == text
    assert [{"name": each["name"], "input": each["input"]} for each in whole["content"] if "input" in each] == calls
    assert whole["stop_reason"] == stop_reason
    if name == "text":
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4


def check_events(events: Iterable[bytes]) -> None:
    """Check the events as the official client reads them: their form, their names, their order."""
    payloads = [json.loads(sse.data_of(event)) for event in events]
    for event, payload in zip(events, payloads, strict=True):
        assert event.startswith(f"event: {payload['type']}\n".encode())
        EVENT.validate_python(payload)
    kinds = [payload["type"] for payload in payloads]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    opened = [payload["index"] for payload in payloads if payload["type"] == "content_block_start"]
    closed = [payload["index"] for payload in payloads if payload["type"] == "content_block_stop"]
    assert opened == closed == list(range(len(opened)))


@pytest.mark.parametrize("event", [b"data: [1]\n\n", b"data: nothing\n\n", b'data: {"choices": 5}\n\n'])
def test_an_event_that_is_none_of_a_chat_is_garbled(event: bytes) -> None:
    with pytest.raises(ModelGarbled):
        MessageTranslator("n", "m").feed(event)


WHOLE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [
        {"type": "thinking", "thinking": "Hm", "signature": "s"},
        {"type": "text", "text": "Hello "},
        {"type": "text", "text": "there"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}},
        {"type": "redacted_thinking", "data": "d"},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 1},
}


def test_a_whole_message_is_streamed_and_adds_up_to_itself() -> None:
    events = list(stream_events(MESSAGES, json.dumps(WHOLE).encode(), with_usage=False))
    check_events(events)
    assert json.loads(collect(events).body) == WHOLE


def test_pings_and_unknown_events_are_no_part_of_a_message() -> None:
    events = list(stream_events(MESSAGES, json.dumps(WHOLE).encode(), with_usage=False))
    more = [messages.PING, sse.comment(b"x"), messages.message_event({"type": "news", "index": 7})]
    assert json.loads(collect([*events[:3], *more, *events[3:]]).body) == WHOLE


def test_an_edited_message_keeps_its_envelope_and_has_ended_by_itself() -> None:
    edited = json.loads(with_text(json.dumps(WHOLE).encode(), "Edited."))
    changed: Sequence[str] = ("content", "stop_reason")
    assert {name: value for name, value in edited.items() if name not in changed} == {
        name: value for name, value in WHOLE.items() if name not in changed
    }
    assert (edited["content"], edited["stop_reason"]) == ([{"type": "text", "text": "Edited."}], "end_turn")
    anthropic.types.Message.model_validate(edited)


def test_a_bare_text_becomes_a_message() -> None:
    message = json.loads(convert_answer(MESSAGES, b'"Edited."', "m"))
    anthropic.types.Message.model_validate(message)
    assert answer_text(json.dumps(message).encode()) == "Edited."
    check_events(list(stream_events(MESSAGES, b'"Edited."', with_usage=False)))
