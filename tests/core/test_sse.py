"""Tests of server-sent events: a byte stream has the same events wherever the network cuts it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signoff.core import sse
from signoff.core.decode import BYTE_ORDER_MARK
from signoff.errors import ModelGarbled

BOUND = 1000
LINE_ENDS = [b"\n", b"\r\n", b"\r"]

CORPUS = [
    (b'data: {"a": 1}', b'{"a": 1}'),
    (b"data:no space", b"no space"),
    (b"data:  two spaces", b" two spaces"),
    (b": a comment", b""),
    (b"event: delta\nid: 7\nretry: 10\ndata: x\n: between", b"x"),
    (b"data: first\ndata: second\ndata:\ndata: fourth", b"first\nsecond\n\nfourth"),
    (b"data", b""),
    (b"data\ndata: x", b"\nx"),
    (b"data: a: b", b"a: b"),
    ("data: Grüße, 世界 👩‍💻".encode(), "Grüße, 世界 👩‍💻".encode()),
    (b"database: not data", b""),
    (b"data: [DONE]", b"[DONE]"),
]


def split_events(*pieces: bytes, bound: int = BOUND) -> tuple[list[bytes], bytes]:
    splitter = sse.EventSplitter(bound)
    return [event for piece in pieces for event in splitter.feed(piece)], splitter.rest


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Draw a stream of one or more events with one kind of line end, and the data of each event."""
    chosen = draw(st.lists(st.sampled_from(CORPUS), min_size=1, max_size=6))
    end = draw(st.sampled_from(LINE_ENDS))
    return b"".join(raw.replace(b"\n", end) + end + end for raw, _ in chosen), [data for _, data in chosen]


@settings(max_examples=100, deadline=None)
@given(streams())
def test_every_single_cut_gives_the_same_events(stream: tuple[bytes, list[bytes]]) -> None:
    raw, data = stream
    uncut = split_events(raw)
    assert [sse.data_of(event) for event in uncut[0]] == data
    assert b"".join(uncut[0]) == raw
    for cut in range(len(raw) + 1):
        assert split_events(raw[:cut], raw[cut:]) == uncut


@settings(max_examples=200, deadline=None)
@given(streams(), st.lists(st.integers(0, 300), max_size=20).map(sorted))
def test_any_number_of_cuts_gives_the_same_events(stream: tuple[bytes, list[bytes]], cuts: list[int]) -> None:
    raw, _ = stream
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert split_events(*pieces) == split_events(raw)
    assert split_events(*(bytes([byte]) for byte in raw)) == split_events(raw)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"data: x", b": c", b"y"])).map(b"".join), st.integers(0, 60))
def test_no_byte_is_lost_or_changed(raw: bytes, cut: int) -> None:
    events, rest = split_events(raw[:cut], raw[cut:])
    assert b"".join(events) + rest == raw
    assert (events, rest) == split_events(raw)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"data: x", b"data: y", b": c", b""]), st.sampled_from([b"\n", b"\r\n"]))))
def test_the_events_are_those_of_a_line_based_parser(lines: list[tuple[bytes, bytes]]) -> None:
    # given mixed line ends, and the algorithm of the standard: collect data until a blank line
    expected, data = list[bytes](), list[bytes]()
    for line, _ in lines:
        if line.startswith(b"data: "):
            data.append(line[6:])
        if not line and data:
            expected.append(b"\n".join(data))
            data = []
    # then the data of the split events is the same
    events, _ = split_events(b"".join(line + end for line, end in lines))
    assert [event_data for event in events if (event_data := sse.data_of(event))] == expected


def test_a_crlf_that_is_cut_in_two_is_one_line_end() -> None:
    assert split_events(b"data: a\r", b"\n\r", b"\ndata: b\r\n\r", b"\n") == (
        [b"data: a\r\n\r\n", b"data: b\r\n\r\n"],
        b"",
    )


def test_an_event_is_returned_as_soon_as_its_blank_line_arrives() -> None:
    splitter = sse.EventSplitter(BOUND)
    assert splitter.feed(b"data: a\n") == []
    assert splitter.feed(b"\nda") == [b"data: a\n\n"]
    assert splitter.rest == b"da"
    assert sse.EventSplitter(BOUND).feed(b"data: a\r\r") == [b"data: a\r\r"]


def test_a_byte_order_mark_is_ignored() -> None:
    events, _ = split_events(BYTE_ORDER_MARK + b"data: a\n\ndata: b\n\n")
    assert [sse.data_of(event) for event in events] == [b"a", b"b"]


def test_a_carriage_return_is_not_part_of_the_data() -> None:
    assert sse.data_of(b"data: a\r\n\n") == b"a"
    assert sse.data_of(b"data: a\rdata: b\n\n") == b"a\nb"


@pytest.mark.parametrize("pieces", [[b"x" * 1001], [b"x"] * 1001, [b"x" * 1000 + b"\n\n"], [b"x" * 999, b"\n\n"]])
def test_an_event_that_outgrows_the_bound_is_garbled(pieces: list[bytes]) -> None:
    with pytest.raises(ModelGarbled):
        split_events(*pieces)


def test_the_bound_applies_to_each_event_and_not_to_the_stream() -> None:
    events, rest = split_events(*[b"data: " + b"x" * 900 + b"\n\n"] * 50)
    assert len(events) == 50
    assert rest == b""
    assert len(split_events(b"x" * 998 + b"\n\n")[0]) == 1


@pytest.mark.parametrize("size_bytes", [1024, 1])
def test_a_large_event_in_small_pieces_takes_linear_time(size_bytes: int) -> None:
    # given 10 MB in 1 KiB pieces (or 256 KiB byte by byte); joining them at each piece would copy 50 GB
    splitter, piece = sse.EventSplitter(2**24), b"x" * size_bytes
    count = 2**18 if size_bytes == 1 else 10_240
    began = time.process_time()
    for _ in range(count):
        assert splitter.feed(piece) == []
    assert len(splitter.feed(b"\n\n")[0]) == count * size_bytes + 2
    assert time.process_time() - began < 5


@settings(max_examples=100, deadline=None)
@given(st.binary().filter(lambda data: b"\n" not in data and b"\r" not in data))
def test_a_framed_event_can_be_parsed(data: bytes) -> None:
    assert sse.data_of(sse.event(data)) == data
    assert split_events(sse.event(data)) == ([sse.event(data)], b"")
    assert sse.data_of(sse.comment(data)) == b""
    assert split_events(sse.comment(b"wait")) == ([sse.comment(b"wait")], b"")
