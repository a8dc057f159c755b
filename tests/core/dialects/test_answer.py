"""Tests of answers: `collect` joins a stream into a whole answer, and `completion_events` streams it again."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from signoff.core import sse
from signoff.core.dialects.answer import (
    answer_text,
    as_completion,
    collect,
    completion_events,
    content_or_json,
    parse_answer,
    with_text,
)
from signoff.core.tokens import Usage
from signoff.errors import ModelGarbled

USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
OPENAI = {"id": "chatcmpl-1", "created": 1694268190, "model": "gpt-4o-mini", "system_fingerprint": "fp_4"}
LLAMA = {"created": 1, "id": "chatcmpl-x", "model": "qwen.gguf", "system_fingerprint": "b5-1", "service_tier": None}


def events(head: dict[str, Any], *parts: dict[str, Any], kind: str = "chat.completion.chunk") -> list[bytes]:
    """Return a stream with one event per part; a part is a choice, or a whole chunk if it has `choices`."""
    pieces = [part if "choices" in part else {"choices": [{"index": 0} | part]} for part in parts]
    raw = [sse.event(json.dumps({**head, "object": kind, **piece}).encode()) for piece in pieces]
    return [*raw, sse.DONE]


def delta(_finish: str | None = None, **members: Any) -> dict[str, Any]:
    return {"delta": members, "finish_reason": _finish}


def chat(head: dict[str, Any], message: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": None} | message, "finish_reason": finish}
    return {**head, "object": "chat.completion", "choices": [choice | more]}


def call(name: str, arguments: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


STREAMS: dict[str, tuple[list[bytes], dict[str, Any]]] = {
    "openai with logprobs and usage": (
        events(
            OPENAI | {"usage": None, "service_tier": "default"},
            delta(role="assistant", content="", refusal=None) | {"logprobs": None},
            delta(content="Hel") | {"logprobs": {"content": [{"token": "Hel", "logprob": -0.1}], "refusal": None}},
            delta(content="lo") | {"logprobs": {"content": [{"token": "lo", "logprob": -0.2}], "refusal": None}},
            delta("stop") | {"logprobs": None},
            {"choices": [], "usage": USAGE},
        ),
        chat(
            OPENAI | {"usage": USAGE, "service_tier": "default"},
            {"content": "Hello", "refusal": None},
            logprobs={
                "content": [{"token": "Hel", "logprob": -0.1}, {"token": "lo", "logprob": -0.2}],
                "refusal": None,
            },
        ),
    ),
    "openai with two tools, in pieces": (
        events(
            OPENAI,
            delta(role="assistant", content=None, tool_calls=[call("weather", "", index=0, id="call_a")]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city": "'}}]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": 'Köln"}'}}]),
            delta(tool_calls=[call("time", "", index=1, id="call_b")]),
            delta(tool_calls=[{"index": 1, "function": {"arguments": "{}"}}]),
            delta("tool_calls"),
        ),
        chat(
            OPENAI,
            {"tool_calls": [call("weather", '{"city": "Köln"}', id="call_a"), call("time", "{}", id="call_b")]},
            "tool_calls",
        ),
    ),
    "openai with a refusal": (
        events(OPENAI, delta(role="assistant", refusal=""), delta(refusal="I "), delta(refusal="won't"), delta("stop")),
        chat(OPENAI, {"refusal": "I won't"}),
    ),
    "azure, whose first event is about the prompt, and which judges every piece": (
        events(
            {},
            {"id": "", "model": "", "object": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
            OPENAI | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
            OPENAI
            | {
                "choices": [
                    {"index": 0, "delta": {"content": "Hi"}, "content_filter_results": {"hate": {"severity": "safe"}}}
                ]
            },
            OPENAI
            | {
                "choices": [
                    {"index": 0, "delta": {"content": "!"}, "content_filter_results": {"hate": {"severity": "safe"}}}
                ]
            },
            OPENAI | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "content_filter_results": {}}]},
        ),
        chat(
            OPENAI | {"prompt_filter_results": [{"prompt_index": 0}]},
            {"content": "Hi!"},
            content_filter_results={"hate": {"severity": "safe"}},
        ),
    ),
    "llama.cpp, which begins with null and thinks first": (
        events(
            LLAMA,
            delta(role="assistant", content=None),
            delta(reasoning_content="Well"),
            delta(reasoning_content="…"),
            delta(content="4"),
            delta("stop") | {"timings": {"n": 0}},
            {"choices": [], "usage": USAGE, "timings": {"predicted_n": 12}},
        ),
        chat(
            LLAMA | {"usage": USAGE, "timings": {"predicted_n": 12}},
            {"content": "4", "reasoning_content": "Well…"},
            timings={"n": 0},
        ),
    ),
    "vllm, with usage in every event": (
        events(
            {"id": "chatcmpl-v", "model": "m", "created": 2},
            {"choices": [{"index": 0, **delta(role="assistant", content="")}], "usage": USAGE | {"total_tokens": 1}},
            {"choices": [{"index": 0, **delta(content="a")}], "usage": USAGE | {"total_tokens": 2}},
            {"choices": [{"index": 0, **delta("stop", content=""), "stop_reason": "</s>"}], "usage": USAGE},
        ),
        chat({"id": "chatcmpl-v", "model": "m", "created": 2, "usage": USAGE}, {"content": "a"}, stop_reason="</s>"),
    ),
    "ollama, which repeats the role and sends a tool whole": (
        events(
            {"id": "chatcmpl-7", "model": "llama3", "created": 3, "system_fingerprint": "fp_ollama"},
            delta(role="assistant", content="Let me "),
            delta(role="assistant", content="look."),
            delta(
                role="assistant",
                content="",
                tool_calls=[call("a", "{}", index=0, id="call_1"), call("b", "{}", index=0, id="call_2")],
            ),
            delta("tool_calls", role="assistant", content=""),
        ),
        chat(
            {"id": "chatcmpl-7", "model": "llama3", "created": 3, "system_fingerprint": "fp_ollama"},
            {"content": "Let me look.", "tool_calls": [call("a", "{}", id="call_1"), call("b", "{}", id="call_2")]},
            "tool_calls",
        ),
    ),
    "ollama, with one index for tools in several events": (
        events(
            OPENAI,
            delta(role="assistant", content="", tool_calls=[call("a", "{}", index=0, id="call_1")]),
            delta(role="assistant", content="", tool_calls=[call("b", "", index=0, id="call_2")]),
            delta(tool_calls=[{"index": 0, "id": "", "function": {"name": "", "arguments": "{}"}}]),
            delta("tool_calls"),
        ),
        chat(
            OPENAI,
            {"content": "", "tool_calls": [call("a", "{}", id="call_1"), call("b", "{}", id="call_2")]},
            "tool_calls",
        ),
    ),
    "several choices, interleaved, and members that nobody knows": (
        events(
            {"id": "x", "model": "m", "provider": {"name": "new"}},
            {"choices": [{"index": 1, **delta(role="assistant", content="one")}]},
            {"choices": [{"index": 0, **delta(role="assistant", content="zero")}]},
            {"choices": [{"index": 1, **delta("length", content="!", mood="calm")}]},
            {"choices": [{"index": 0, **delta("stop", content="!", seen=[1])}]},
        ),
        {
            "id": "x",
            "model": "m",
            "provider": {"name": "new"},
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "zero!", "seen": [1]},
                    "finish_reason": "stop",
                },
                {
                    "index": 1,
                    "message": {"role": "assistant", "content": "one!", "mood": "calm"},
                    "finish_reason": "length",
                },
            ],
        },
    ),
    "a text completion": (
        events(
            {"id": "cmpl-1", "model": "m"},
            {"text": "4", "logprobs": {"tokens": ["4"], "token_logprobs": [-0.1], "top_logprobs": [{"4": -0.1}]}},
            {"text": "2", "logprobs": {"tokens": ["2"], "token_logprobs": [-0.3], "top_logprobs": [{"2": -0.3}]}},
            {"text": "", "finish_reason": "stop", "logprobs": None},
            {"choices": [], "usage": USAGE},
            kind="text_completion",
        ),
        {
            "id": "cmpl-1",
            "model": "m",
            "object": "text_completion",
            "usage": USAGE,
            "choices": [
                {
                    "index": 0,
                    "text": "42",
                    "finish_reason": "stop",
                    "logprobs": {
                        "tokens": ["4", "2"],
                        "token_logprobs": [-0.1, -0.3],
                        "top_logprobs": [{"4": -0.1}, {"2": -0.3}],
                    },
                }
            ],
        },
    ),
    "a text completion without its kind": (
        events({"id": "c"}, {"text": "a\r\n"}, {"text": "b"}, kind=""),
        {"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": "a\r\nb"}]},
    ),
    "a stream of the responses endpoint": (
        [
            b'event: response.created\ndata: {"type":"response.created","response":{}}\n\n',
            b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r"}}\n\n',
        ],
        {"id": "r"},
    ),
    "keep-alives and nothing else": (
        [sse.comment(b"working"), sse.DONE],
        {"object": "chat.completion", "choices": []},
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_collected_stream_is_the_whole_answer(name: str) -> None:
    stream, whole = STREAMS[name]
    assert json.loads(collect(stream).body) == whole


def test_the_last_usage_in_a_stream_counts() -> None:
    stream, _ = STREAMS["vllm, with usage in every event"]
    assert collect(stream).usage == Usage(prompt_tokens=9, completion_tokens=12, total_tokens=21)


def test_text_that_is_split_per_character_is_joined() -> None:
    # given an answer with characters of two, three and four bytes, one per event
    text = "Grüße, 世界 👩‍💻 \u0000\r\n"
    stream = events(OPENAI, delta(role="assistant", content=""), *(delta(content=letter) for letter in text))
    assert answer_text(collect(stream).body) == text


def test_a_whole_answer_is_collected_unchanged() -> None:
    body = b'{ "choices" : [ ] , "usage": {"prompt_tokens": 3} }'
    assert parse_answer(body).body == body
    assert parse_answer(body).usage == Usage(prompt_tokens=3)


@pytest.mark.parametrize("usage", [None, 3, {"prompt_tokens": "many"}, {"prompt_tokens": None}])
def test_a_usage_of_a_wrong_type_is_ignored(usage: Any) -> None:
    assert parse_answer(json.dumps({"usage": usage}).encode()).usage is None


def test_a_long_answer_is_collected_in_linear_time() -> None:
    # given 20,000 pieces of 1 kB; joining them one by one would copy 200 GB
    stream = events(OPENAI, *(delta(content="x" * 1000) for _ in range(20_000)))
    began = time.process_time()
    assert len(answer_text(collect(stream).body) or "") == 20_000_000
    assert time.process_time() - began < 5


GARBLED = [b"data: nonsense\n\n", b"data: [1]\n\n", b'data: "text"\n\n', b"data: " + b"[" * 100_000 + b"\n\n"]
GARBLED += [
    sse.event(json.dumps(piece).encode())
    for piece in (
        {"choices": 3},
        {"choices": "abc"},
        {"choices": {"0": {}}},
        {"choices": [3]},
        {"choices": [{"index": "first"}]},
        {"choices": [{"index": 0.5, "delta": {}}]},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"delta": {"tool_calls": "text"}}]},
        {"choices": [{"delta": {"tool_calls": ["text"]}}]},
    )
]


@pytest.mark.parametrize("event", GARBLED)
def test_an_event_that_is_not_a_completion_is_garbled(event: bytes) -> None:
    with pytest.raises(ModelGarbled):
        collect([event, sse.DONE])


@pytest.mark.parametrize("body", [b"", b"nonsense", b'{"a": ', b"[" * 100_000, b"\xff"])
def test_a_whole_answer_that_is_not_json_is_garbled(body: bytes) -> None:
    with pytest.raises(ModelGarbled):
        parse_answer(body)


@pytest.mark.parametrize("piece", [{"choices": None}, {"choices": []}, {}, {"choices": [{"delta": None}]}])
def test_an_empty_chunk_changes_nothing(piece: dict[str, Any]) -> None:
    stream = events(OPENAI, delta(role="assistant", content="Hi"), delta("stop"))
    with_piece = [stream[0], sse.event(json.dumps(piece).encode()), *stream[1:]]
    assert collect(with_piece) == collect(stream)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "index", "delta", "text", "tool_calls", "id", "content", "logprobs", "usage"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.fixed_dictionaries({"choices": ANY_JSON}) | ANY_JSON, max_size=4))
def test_any_streamed_json_is_an_answer_or_garbled(pieces: list[Any]) -> None:
    stream = [sse.event(json.dumps(piece).encode()) for piece in pieces]
    with contextlib.suppress(ModelGarbled):
        json.loads(collect(stream).body)


@settings(max_examples=200, deadline=None)
@given(ANY_JSON, st.text(max_size=5))
@example({"choices": [{}, {"choices": None, "text": False}]}, "")
def test_any_json_answer_can_be_read_edited_and_streamed(value: Any, text: str) -> None:
    body = json.dumps(value).encode()
    assert isinstance(answer_text(body), str | None)
    assert answer_text(with_text(body, text)) == text or json.loads(with_text(body, text)) == text
    assert list(completion_events(body, with_usage=True))[-1] == sse.DONE


TEXTS = st.text(min_size=1, max_size=20)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.uuids().map(str),
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": TEXTS, "arguments": st.text(max_size=9)}),
        }
    ),
    max_size=3,
    unique_by=lambda tool_call: tool_call["id"],
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | st.text(max_size=30)},
    optional={
        "refusal": st.none() | TEXTS,
        "reasoning_content": st.none() | TEXTS,
        "tool_calls": CALLS,
        "annotations": st.just([]),
        "audio": st.fixed_dictionaries({"id": TEXTS, "data": TEXTS}),
    },
)
LOGPROBS = st.none() | st.fixed_dictionaries(
    {
        "content": st.lists(st.fixed_dictionaries({"token": TEXTS, "logprob": st.floats(-9, 0)}), max_size=3),
        "refusal": st.none(),
    }
)
CHOICES = st.fixed_dictionaries(
    {"message": MESSAGES, "finish_reason": st.sampled_from(["stop", "length", "tool_calls"])},
    optional={"logprobs": LOGPROBS, "stop_reason": st.none() | TEXTS, "content_filter_results": st.just({"a": "b"})},
)
COMPLETIONS = st.builds(
    lambda head, choices: (
        head
        | {"object": "chat.completion", "choices": [{"index": index} | choice for index, choice in enumerate(choices)]}
    ),
    st.fixed_dictionaries(
        {"id": TEXTS, "model": TEXTS, "created": st.integers(0, 2**40)},
        optional={
            "usage": st.just(USAGE),
            "system_fingerprint": st.none() | TEXTS,
            "service_tier": st.just("default"),
            "new": ANY_JSON,
        },
    ),
    st.lists(CHOICES, min_size=1, max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(COMPLETIONS)
def test_an_answer_that_is_split_and_collected_is_the_same(whole: dict[str, Any]) -> None:
    answer = parse_answer(json.dumps(whole).encode())
    collected = collect(completion_events(answer.body, with_usage=True))
    assert json.loads(collected.body) == whole
    assert collected.usage == answer.usage


@pytest.mark.parametrize("name", [name for name in STREAMS if '"message"' in json.dumps(STREAMS[name][1])])
def test_a_collected_stream_that_is_split_and_collected_is_the_same(name: str) -> None:
    stream, whole = STREAMS[name]
    assert json.loads(collect(completion_events(collect(stream).body, with_usage=True)).body) == whole


def payloads(events: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(sse.data_of(event)) for event in events if event != sse.DONE]


def test_a_split_answer_has_its_events_in_the_usual_order() -> None:
    # given an answer with all members, in another order
    message = {"tool_calls": [call("f", "{}", id="c")], "content": "Hi", "reasoning": "Hm", "refusal": None}
    whole = chat(OPENAI, message, "tool_calls", logprobs={"content": []}) | {"usage": USAGE}
    # when it is split
    parts = list(completion_events(json.dumps(whole).encode(), with_usage=True))
    # then a client reads it in the usual order
    deltas = [choice["delta"] for piece in payloads(parts) for choice in piece["choices"]]
    assert deltas == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning": "Hm"},
        {"content": "Hi"},
        {"tool_calls": [call("f", "", id="c", index=0)]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {},
    ]
    finishes = [choice["finish_reason"] for piece in payloads(parts) for choice in piece["choices"]]
    assert finishes == [None, None, None, None, None, "tool_calls"]
    assert payloads(parts)[2]["choices"][0]["logprobs"] == {"content": []}
    assert payloads(parts)[-1] == OPENAI | {"object": "chat.completion.chunk", "choices": [], "usage": USAGE}
    assert parts[-1] == sse.DONE


def test_a_split_answer_includes_its_usage_only_on_request() -> None:
    whole = json.dumps(chat(OPENAI, {"content": "Hi"}) | {"usage": USAGE}).encode()
    assert all("usage" not in piece for piece in payloads(list(completion_events(whole, with_usage=False))))
    without = json.dumps(chat(OPENAI, {"content": "Hi"})).encode()
    assert all(piece["choices"] for piece in payloads(list(completion_events(without, with_usage=True))))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"label": "spam"}', '{"label": "spam"}'),
        (b'"just words"', "just words"),
        (b"[1,2]", "[1,2]"),
        (b"null", "null"),
        (b'{"choices": [{"text": "old"}]}', "old"),
        (b'{"choices": [{"message": {"content": "x", "tool_calls": 3}}]}', "x"),
    ],
)
def test_an_answer_that_is_not_a_chat_completion_is_streamed_as_its_text(answer: bytes, words: str) -> None:
    assert answer_text(collect(completion_events(answer, with_usage=True)).body) == words


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"choices": [{"message": {"content": "chat"}}]}', "chat"),
        (b'{"choices": [{"text": "text"}, {"text": "other"}]}', "text"),
        (b'{"choices": [{"message": {"content": null}}]}', None),
        (b'{"choices": [{"message": {"content": [{"type": "text"}]}}]}', None),
        (
            b'{"choices": [{"message": {"content": [{"text": "bl"}, {"type": "text", "text": "ocks"}, "!"]}}]}',
            "blocks!",
        ),
        (b'{"choices": [{"message": {"content": {"type": "text", "text": "a block"}}}]}', "a block"),
        (b'{"choices": [{"message": {"content": {"type": "thinking", "text": "hm"}}}]}', None),
        (b'{"choices": [{"message": {"content": 5}}]}', None),
        (b'{"choices": []}', None),
        (b'{"choices": null}', None),
        (b'"text"', None),
        (b"nonsense", None),
        (b"[" * 100_000, None),
        (None, None),
    ],
)
def test_the_text_of_an_answer_is_that_of_its_first_choice(body: bytes | None, words: str | None) -> None:
    assert answer_text(body) == words


def test_replacing_the_text_keeps_the_envelope() -> None:
    whole = chat(OPENAI, {"content": "old", "refusal": None})
    edited = json.loads(with_text(json.dumps(whole).encode(), "new"))
    assert edited["choices"][0]["message"].pop("content") == "new"
    del whole["choices"][0]["message"]["content"]
    assert edited == whole
    text = b'{"id":"c","choices":[{"index":0,"text":"old"},{"text":"other"}]}'
    assert with_text(text, "new") == b'{"id":"c","choices":[{"index":0,"text":"new"}]}'


@pytest.mark.parametrize("body", [b"3", b"[]", b"null", b'{"choices": []}', b'{"choices": [3]}', b"{", b"[" * 100_000])
def test_replacing_the_text_of_an_answer_without_text_returns_the_text(body: bytes) -> None:
    assert with_text(body, "new") == b'"new"'


def test_a_text_becomes_a_completion_that_strict_clients_accept() -> None:
    body = as_completion(b'"Hello"', "gpt")
    assert answer_text(body) == "Hello"
    completion = json.loads(body)
    assert {"id", "object", "created", "model", "choices"} == completion.keys()
    assert (completion["object"], completion["model"], completion["choices"][0]["finish_reason"]) == (
        "chat.completion",
        "gpt",
        "stop",
    )
    assert (
        completion["id"]
        == json.loads(as_completion(b'"Hello"', "gpt"))["id"]
        != json.loads(as_completion(b'"No"', "gpt"))["id"]
    )


def test_numbers_keep_their_precision() -> None:
    whole = chat(OPENAI | {"n": 123456789012345678901234567890, "x": 0.1}, {"content": "Hi"})
    assert json.loads(collect(completion_events(json.dumps(whole).encode(), with_usage=False)).body) == whole


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"choices": [{"message": {"content": "Hi"}}]}', '"Hi"'),
        (b'{"choices": []}', r'"{\"choices\": []}"'),
        (b'{"choices": [{"message": {"content": null, "tool_calls": []}}]}', None),
        (b'{"output": []}', r'"{\"output\": []}"'),
        (b'{"object": "list", "data": [{"embedding": [1]}]}', '{"object": "list", "data": [{"embedding": [1]}]}'),
        (b'{"choices": null, "n": 1}', '{"choices": null, "n": 1}'),
        (b"[1]", "[1]"),
    ],
)
def test_the_content_of_a_completion_is_always_a_text(body: bytes, expected: str | None) -> None:
    content = msgspec.json.encode(content_or_json(body)).decode()
    assert content == expected or (expected is None and msgspec.json.decode(content, type=str))
