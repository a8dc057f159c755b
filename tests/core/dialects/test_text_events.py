"""Events that equal an earlier one but for their text: to read them as bytes changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core import sse
from signoff.core.dialects import assembly
from signoff.core.dialects.answer import collect
from signoff.core.dialects.text_events import text_event
from signoff.engines import upstream_events
from signoff.engines.upstream_events import EventStream
from signoff.errors import SignoffError

CHUNK = '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[%s]}'
PLAIN = CHUNK % '{"index":0,"delta":{"content":%s},"finish_reason":null}'
# Forms of events, with a place for a JSON string.
FORMS = [
    PLAIN,
    PLAIN,
    CHUNK % '{"index":1,"delta":{"content":%s},"logprobs":null,"finish_reason":null}',
    CHUNK % '{"index":0,"delta":{"role":"assistant","content":%s,"tool_calls":null}}',
    CHUNK % '{"index":0,"delta":{"content":%s,"reasoning_content":"so"}}',
    CHUNK % '{"index":0,"delta":{"reasoning_content":%s}}',
    CHUNK % '{"index":0,"delta":{"content":%s},"logprobs":{"tokens":["t"]}}',
    CHUNK % '{"index":0,"delta":{"content":%s},"finish_reason":"stop"}',
    CHUNK % '{"index":0,"text":%s}',
    CHUNK % '{"index":0,"delta":{"tool_calls":[{"index":0,"id":"t","function":{"name":"f","arguments":%s}}]}}',
    CHUNK % '{"index":0,"delta":{"content":[{"type":"text","text":%s}]}}',
    CHUNK % '{"index":0,"delta":{"content":%s}},{"index":1,"delta":{"content":"two"}}',
    '{"id":"c2","choices":[{"delta": {"content": %s}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}',
    '{"choices":[{"index":0,"delta":{"content":%s,"content":"later"}}]}',
    '{"choices":[{"index":0,"delta":{"content":null},"note":%s}]}',
    '{"error":{"message":%s}}',
    '{"type":"ping","note":%s}',
]
TEXTS = st.one_of(
    st.sampled_from(
        [
            *('""', '"a"', '" the"', r'"\""', r'"\\"', r'"\\\""', '"é😀"', r'"\u00e9"'),
            *(r'"\ud83d\ude00"', r'"\ud83d"', r'"\ude00"', r'"\x"', '"error"', r'"\"error\":1"'),
            *(r'"\"content\":\"x\""', '"[DONE]"', "null", "7", '"a","b":"c"', '"a"}]},{"b":["c"', '"cut'),
            *('"a\tb"', '"a\rb"', '"a" ', ' "a"'),
        ]
    ),
    st.text(max_size=5).map(json.dumps),
    st.text(max_size=5).map(lambda text: json.dumps(text, ensure_ascii=False)),
)
RUNS = st.builds(
    lambda form, texts: [b"data: " + (form % text).encode(errors="replace") + b"\n\n" for text in texts],
    st.sampled_from(FORMS),
    st.lists(TEXTS, min_size=1, max_size=4),
)
OTHERS = st.sampled_from([b": comment\n\n", sse.DONE, b"data:\n\n", b"event: error\ndata: {}\n\n", b"data: {\xff\n\n"])
STREAMS = st.lists(st.one_of(RUNS, OTHERS.map(lambda event: [event])), max_size=6).map(
    lambda runs: [event for run in runs for event in run]
)


@given(STREAMS)
def test_an_answer_is_the_same_as_if_each_event_were_parsed(events: list[bytes]) -> None:
    quick = outcome(lambda: collect(events, b"{}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "text_event", lambda _: None)
        assert quick == outcome(lambda: collect(events, b"{}"))


@given(STREAMS, st.booleans())
def test_a_stream_ends_and_fails_as_if_each_event_were_parsed(events: list[bytes], json_only: bool) -> None:
    quick = outcome(lambda: read(events, json_only=json_only))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upstream_events, "text_event", lambda _: None)
        assert quick == outcome(lambda: read(events, json_only=json_only))


def read(events: list[bytes], *, json_only: bool) -> tuple[list[bytes], bool]:
    stream, taken = EventStream(10_000, json_only=json_only), list[bytes]()
    try:
        for event in events:
            stream.feed(event)
            taken += stream.take()
    except SignoffError as error:
        return [*taken, *stream.take(), repr(error).encode()], stream.is_ended
    return taken, stream.is_ended


def outcome(work: Any) -> Any:
    """Return what `work` returns, or the error that it raises."""
    try:
        return work()
    except SignoffError as error:
        return repr(error)


def test_plain_deltas_are_read_as_bytes() -> None:
    first, second = (b"data: " + (PLAIN % json.dumps(text)).encode() + b"\n\n" for text in ("Hello", ', "you"\n'))
    latest = text_event(first)
    assert latest is not None
    assert (latest.text_in(first), latest.text_in(second)) == ("Hello", ', "you"\n')
    # an event that goes on after its text, is cut, or has no text is another one
    for data in ('"a","role":"user"', '"a', "7", r'"\ud83d"'):
        assert latest.text_in(b"data: " + (PLAIN % data).encode() + b"\n\n") is None
    assert text_event(b"data: " + (PLAIN % json.dumps("x" * 70_000)).encode() + b"\n\n") is None
