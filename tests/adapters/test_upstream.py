"""The HTTP client of models, against a server that misbehaves in many ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from fakes.behaviours import ANSWER, COMMENTED_EVENTS, CRLF_EVENTS, EVENTS, FINISHED_EVENTS, MESSAGE, RESPONSE_EVENTS
from fakes.http_server import LIMIT_SECONDS, RecordedRequest, Reply, chunked, sse_event, whole
from fakes.upstream import FakeUpstream, fake_upstream, full_upstream
from signoff.core.dialects.answer import answer_text
from signoff.core.model import Model, Timeouts
from signoff.engine import ModelRequest
from signoff.engines import openai
from signoff.engines.http_request import UpstreamRequest
from signoff.engines.openai import OpenAIEngine
from signoff.engines.upstream import UpstreamClient
from signoff.errors import ModelAnswered, ModelCut, ModelFailed, ModelGarbled, ModelTimedOut, ModelUnreachable
from support.sinks import Events, StepwiseAnswer, body_of, events_of

pytestmark = pytest.mark.anyio

NOW = 946_684_790.0
"""Nine seconds before the end of 1999, from which on `too-many-until` accepts requests again."""
DEFAULT_TIMEOUTS = Timeouts()


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with fake_upstream() as fake:
        yield fake


@pytest.fixture
async def upstream() -> AsyncIterator[UpstreamClient]:
    upstream = UpstreamClient(now=lambda: NOW)
    await upstream.start()
    yield upstream
    await upstream.close()


async def ask(
    upstream: UpstreamClient,
    url: str,
    *,
    into: Events | None = None,
    body: bytes = b"{}",
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    stream: bool = False,
) -> bytes | list[bytes]:
    """Return the answer, or all its events; after an error, `into` holds those that arrived before it."""
    events = Events() if into is None else into
    request = UpstreamRequest("POST", url, body, {})
    async with asyncio.timeout(LIMIT_SECONDS):
        whole = await upstream.ask(request, events, timeouts=timeouts, stream=stream)
    return events.received if whole is None else whole


async def test_an_answer_passes_byte_for_byte(fake: FakeUpstream, upstream: UpstreamClient) -> None:
    assert await ask(upstream, fake.at("answer")) == ANSWER


@pytest.mark.parametrize(
    ("behaviour", "sent"),
    [
        ("stream", EVENTS),
        ("stream-at-once", EVENTS),
        ("stream-of-crlf", CRLF_EVENTS),
        ("stream-of-bytes", CRLF_EVENTS),
        ("stream-with-comments", COMMENTED_EVENTS),
        ("stream-as-text", EVENTS),
        ("stream-until-close", EVENTS),
        ("stream-of-a-response", RESPONSE_EVENTS),
        ("stream-without-last-blank-line", EVENTS),
        ("stream-that-lingers", EVENTS),
    ],
)
async def test_every_event_of_a_stream_passes_byte_for_byte(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str, sent: list[bytes]
) -> None:
    assert await ask(upstream, fake.at(behaviour), stream=True) == sent


async def test_a_finished_stream_gets_the_mark_that_it_lacks(fake: FakeUpstream, upstream: UpstreamClient) -> None:
    assert await ask(upstream, fake.at("stream-without-mark"), stream=True) == [*FINISHED_EVENTS, EVENTS[-1]]


@pytest.mark.parametrize("behaviour", ["stream", "stream-as-text", "stream-without-mark"])
async def test_events_that_were_not_asked_for_are_collected(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str
) -> None:
    body = await ask(upstream, fake.at(behaviour))

    assert isinstance(body, bytes)
    assert (answer_text(body) or "").startswith("one")


async def test_the_events_of_a_message_that_were_not_asked_for_are_collected(upstream: UpstreamClient) -> None:
    start = {"type": "message_start", "message": {"type": "message", "role": "assistant", "content": []}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "one"}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}

    async def script(_: RecordedRequest) -> Reply:
        return chunked(*(sse_event(payload) for payload in (start, delta, end, {"type": "message_stop"})))

    async with fake_upstream(script) as server:
        body = await ask(upstream, server.url)
    assert isinstance(body, bytes)
    assert answer_text(body) == "one"


async def test_events_of_another_shape_are_no_answer_to_a_whole_request(
    fake: FakeUpstream, upstream: UpstreamClient
) -> None:
    with pytest.raises(ModelGarbled):
        await ask(upstream, fake.at("numbered"))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_part_of_a_character_becomes_a_replacement_character(upstream: UpstreamClient, *, stream: bool) -> None:
    async def script(_: RecordedRequest) -> Reply:
        return whole(b'{"choices": "a\xf0\x9f"}')

    async with fake_upstream(script) as server:
        assert await ask(upstream, server.url, stream=stream) == '{"choices": "a\ufffd"}'.encode()


async def test_a_server_that_ignores_stream_is_accepted(fake: FakeUpstream, upstream: UpstreamClient) -> None:
    assert await ask(upstream, fake.at("answer"), stream=True) == ANSWER


@pytest.mark.parametrize("size_bytes", [0, 1, 2**20, 5_000_001])
async def test_a_request_passes_byte_for_byte(fake: FakeUpstream, upstream: UpstreamClient, size_bytes: int) -> None:
    body = msgspec.json.encode("x" * size_bytes)

    assert await ask(upstream, fake.at("mirror"), body=body) == body
    assert fake.requests[0].body == body


@pytest.mark.parametrize("behaviour", ["answer", "stream", "stream-of-a-response", "too-many", "broken-in-html"])
async def test_a_connection_is_reused_after_its_answer_was_read(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str
) -> None:
    for _ in range(3):
        try:
            await ask(upstream, fake.at(behaviour), stream=True)
        except ModelAnswered:
            continue

    assert (fake.opened, len(fake.requests)) == (1, 3)


async def test_a_request_has_no_cookies_and_asks_for_no_compression(
    fake: FakeUpstream, upstream: UpstreamClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    # The host is given by its name, as aiohttp stores no cookies for an IP address.
    url = fake.at("answer").replace("127.0.0.1", "localhost")

    await ask(upstream, url)
    await ask(upstream, url)

    headers = fake.requests[1].headers
    assert "cookie" not in headers
    assert headers["accept-encoding"] == "identity"


# Broken answers.


@pytest.mark.parametrize("behaviour", ["cut-stream", "cut-event", "end-stream-early", "reset-stream"])
async def test_a_stream_without_its_last_event_is_cut(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str
) -> None:
    received = Events()

    with pytest.raises(ModelCut):
        await ask(upstream, fake.at(behaviour), stream=True, into=received)

    assert received.received == EVENTS[: len(received.received)]


async def ask_unknown_endpoint(upstream: UpstreamClient, url: str) -> list[bytes]:
    """Return all events that an endpoint of unknown shape streams."""
    request = UpstreamRequest("POST", url, b"{}", {})
    async with asyncio.timeout(LIMIT_SECONDS):
        return await events_of(
            lambda sink: upstream.ask(request, sink, timeouts=DEFAULT_TIMEOUTS, stream=True, json_only=False)
        )


@pytest.mark.parametrize(
    ("behaviour", "sent"),
    [
        ("message", MESSAGE),
        ("message-without-last-blank-line", [*MESSAGE[:-1], MESSAGE[-1][:-1]]),
        ("stream-of-a-response", RESPONSE_EVENTS),
        ("end-stream-early", EVENTS[:2]),
        ("stream-without-last-blank-line", EVENTS),
    ],
)
async def test_a_stream_of_an_unknown_endpoint_passes_to_its_end_whatever_its_content(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str, sent: list[bytes]
) -> None:
    assert await ask_unknown_endpoint(upstream, fake.at(behaviour)) == sent


@pytest.mark.parametrize("behaviour", ["cut-stream", "cut-event", "reset-stream"])
async def test_a_stream_of_an_unknown_endpoint_is_cut_where_its_body_is(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str
) -> None:
    with pytest.raises(ModelCut):
        await ask_unknown_endpoint(upstream, fake.at(behaviour))


async def test_a_truncated_body_is_cut(fake: FakeUpstream, upstream: UpstreamClient) -> None:
    with pytest.raises(ModelCut):
        await ask(upstream, fake.at("cut-body"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "behaviour", ["html", "not-json", "nothing", "deep", "not-http", "not-chunks", "redirect", "huge-body"]
)
async def test_an_unreadable_answer_is_garbled(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str, *, stream: bool
) -> None:
    with pytest.raises(ModelGarbled):
        await ask(upstream, fake.at(behaviour), stream=stream)

    assert len(fake.requests) == 1, "a redirect is not followed"


@pytest.mark.parametrize("behaviour", ["not-an-event", "huge-event"])
async def test_an_unreadable_event_is_garbled(fake: FakeUpstream, upstream: UpstreamClient, behaviour: str) -> None:
    received = Events()

    with pytest.raises(ModelGarbled):
        await ask(upstream, fake.at(behaviour), stream=True, into=received)

    assert received.received == EVENTS[:1]


# Errors of the model.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("behaviour", "status", "message", "retry_after_seconds"),
    [
        ("too-many", 429, "Slow down.", 7),
        ("too-many-until", 429, "Slow down.", 9),
        ("too-many-until-in-c", 429, "Slow down.", 9),
        ("broken", 500, "The GPU is on fire.", None),
        ("broken-in-html", 500, "Oops", None),
        ("broken-in-silence", 503, "The model answered with status 503.", None),
        ("broken-twice", 400, '{"message": "No such', None),
    ],
)
async def test_an_error_keeps_its_status_message_and_retry_after(
    fake: FakeUpstream,
    upstream: UpstreamClient,
    behaviour: str,
    status: int,
    message: str,
    retry_after_seconds: float | None,
    *,
    stream: bool,
) -> None:
    with pytest.raises(ModelAnswered) as raised:
        await ask(upstream, fake.at(behaviour), stream=stream)

    error = raised.value
    assert (error.status, error.message, error.retry_after_seconds) == (status, message, retry_after_seconds)
    assert error.retryable is (status != 400)


@pytest.mark.parametrize(
    ("behaviour", "sent", "status"),
    [
        ("error-in-stream", EVENTS[:2], 507),
        ("error-in-stream-without-code", EVENTS[:2], 502),
        ("error-in-response", RESPONSE_EVENTS[:1], 502),
    ],
)
async def test_an_error_in_a_stream_is_raised_after_what_came_before(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str, sent: list[bytes], status: int
) -> None:
    received = Events()

    with pytest.raises(ModelAnswered, match="Out of memory") as raised:
        await ask(upstream, fake.at(behaviour), stream=True, into=received)

    assert received.received == sent
    assert raised.value.status == status


# Timeouts.


@pytest.mark.parametrize(
    ("behaviour", "timeouts", "message"),
    [
        ("hang-before-headers", Timeouts(first_byte_seconds=0.1), "did not start to answer within 0.1 s"),
        ("hang-before-headers", Timeouts(total_seconds=0.1), "took more than 0.1 s"),
        ("slow-headers", Timeouts(first_byte_seconds=0.1), "did not start to answer within 0.1 s"),
        (
            "hang-after-headers",
            Timeouts(first_byte_seconds=0.1, between_chunks_seconds=0.01),
            "did not start to answer",
        ),
        ("hang-mid-stream", Timeouts(between_chunks_seconds=0.1), "sent nothing for 0.1 s"),
        ("hang-mid-body", Timeouts(between_chunks_seconds=0.1), "sent nothing for 0.1 s"),
        ("hang-mid-stream", Timeouts(total_seconds=0.1), "took more than 0.1 s"),
        ("trickle", Timeouts(total_seconds=1, between_chunks_seconds=60), "took more than 1 s"),
        ("deaf", Timeouts(first_byte_seconds=0.1), "did not start to answer within 0.1 s"),
    ],
)
async def test_every_wait_for_a_model_has_its_limit(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str, timeouts: Timeouts, message: str
) -> None:
    with pytest.raises(ModelTimedOut, match=message):
        await ask(upstream, fake.at(behaviour), stream=True, timeouts=timeouts, body=b" " * 10_000_000)

    fake.wake.set()
    assert await fake.all_closed()


async def test_the_first_event_may_take_as_long_as_the_headers(fake: FakeUpstream, upstream: UpstreamClient) -> None:
    timeouts = Timeouts(between_chunks_seconds=0.15)  # shorter than the pause before the first event

    assert await ask(upstream, fake.at("stream-after-a-thought"), stream=True, timeouts=timeouts) == EVENTS


async def test_a_slow_reader_does_not_extend_the_total_timeout(fake: FakeUpstream, upstream: UpstreamClient) -> None:
    timeouts = Timeouts(total_seconds=0.1)

    class SlowReader(Events):
        async def send(self, events: Sequence[bytes]) -> None:
            await asyncio.sleep(0.02)

    with pytest.raises(ModelTimedOut, match=r"took more than 0\.1 s"):
        await ask(upstream, fake.at("flood"), into=SlowReader(), body=b"", timeouts=timeouts, stream=True)


async def test_a_model_that_accepts_no_connection_is_unreachable(upstream: UpstreamClient) -> None:
    with full_upstream() as url, pytest.raises(ModelUnreachable):
        await ask(upstream, url, timeouts=Timeouts(connect_seconds=0.1))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://no-such-host.invalid/v1", "not a url", "ftp://a/b"])
async def test_a_missing_model_is_unreachable_and_the_error_does_not_show_its_address(
    upstream: UpstreamClient, url: str
) -> None:
    with pytest.raises(ModelUnreachable) as raised:
        await ask(upstream, url)

    assert raised.value.retryable
    assert "127.0.0.1" not in raised.value.message
    assert "invalid" not in raised.value.message


async def test_a_request_is_not_repeated_when_the_model_hangs_up(fake: FakeUpstream, upstream: UpstreamClient) -> None:
    with pytest.raises(ModelUnreachable):
        await ask(upstream, fake.at("leave"))

    assert len(fake.requests) == 1


async def test_a_stale_connection_costs_one_more_request_on_a_new_one(
    fake: FakeUpstream, upstream: UpstreamClient
) -> None:
    url = fake.at("leave-when-reused")
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(ask(upstream, url))

    assert await ask(upstream, url) == ANSWER

    assert (fake.opened, len(fake.requests)) == (4, 5)


async def test_a_stale_connection_costs_no_more_than_one_request(fake: FakeUpstream, upstream: UpstreamClient) -> None:
    url = fake.at("leave-when-reused-then-always")
    await ask(upstream, url)

    with pytest.raises(ModelUnreachable):
        await ask(upstream, url)

    assert len(fake.requests) == 3


# Cancellation.


@pytest.mark.parametrize(
    ("behaviour", "stream"),
    [
        ("hang-before-headers", False),
        ("hang-before-headers", True),
        ("hang-after-headers", True),
        ("hang-mid-body", False),
    ],
)
async def test_a_call_cancelled_before_a_chunk_closes_its_upstream_socket_within_a_second(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str, *, stream: bool
) -> None:
    async with asyncio.TaskGroup() as group:
        call = group.create_task(ask(upstream, fake.at(behaviour), stream=stream))
        await fake.until_stuck()
        call.cancel()

        assert await fake.all_closed()

    assert call.cancelled()


MID_STREAM = pytest.mark.parametrize("behaviour", ["hang-mid-stream", "trickle", "stream-that-lingers"])


@MID_STREAM
async def test_a_call_cancelled_mid_stream_closes_its_upstream_socket_within_a_second(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str
) -> None:
    events = Events()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(ask(upstream, fake.at(behaviour), into=events, stream=True))
        await events.begun.wait()
        call.cancel()

        assert await fake.all_closed()

    assert call.cancelled()


@MID_STREAM
async def test_a_call_cancelled_while_its_reader_is_slow_closes_its_upstream_socket_within_a_second(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str
) -> None:
    request = UpstreamRequest("POST", fake.at(behaviour), b"{}", {})
    call = StepwiseAnswer(lambda sink: upstream.ask(request, sink, timeouts=DEFAULT_TIMEOUTS, stream=True))
    await call.next()

    await call.leave()

    assert await fake.all_closed()


async def test_a_cancelled_upload_closes_its_socket_though_the_model_does_not_read(
    fake: FakeUpstream, upstream: UpstreamClient
) -> None:
    body = b" " * 20_000_000
    async with asyncio.TaskGroup() as group:
        call = group.create_task(ask(upstream, fake.at("deaf"), body=body))
        await fake.until_stuck()
        sockets = count_of_files()
        call.cancel()

        async with asyncio.timeout(LIMIT_SECONDS):
            while count_of_files() == sockets:
                await asyncio.sleep(0)

    fake.wake.set()
    assert await fake.all_closed()
    assert len(fake.requests[0].body) < len(body)


def count_of_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.mark.parametrize("behaviour", ["hang-before-headers", "hang-mid-stream"])
async def test_closing_the_pool_ends_the_calls_on_it(
    fake: FakeUpstream, upstream: UpstreamClient, behaviour: str
) -> None:
    events = Events()

    async def fail() -> None:
        with pytest.raises(ModelFailed):
            await ask(upstream, fake.at(behaviour), into=events, stream=True)

    async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(fail())
        await (fake.stuck if behaviour == "hang-before-headers" else events.begun).wait()
        await upstream.close()

        assert await fake.all_closed()


# Models with OpenAI's API.


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{ "model" : "m",  "n": 1.0}', b'{ "model" : "m",  "n": 1.0}'),
        (b'{"n": 1.0e0, "model": "x", "a": [ 1 ]}', b'{"n":1.0e0,"model":"m","a":[ 1 ]}'),
        (b'{"n": 1.0e0}', b'{"n":1.0e0,"model":"m"}'),
        (b'{"model": null}', b'{"model":"m"}'),
        (b'{"model": {"m": 1}}', b'{"model":"m"}'),
        (b'{"model": "m", "model": "x"}', b'{"model":"m"}'),
        (b'{"model": "x", "model":  "m"}', b'{"model": "x", "model":  "m"}'),
        (b"[1,  2]", b"[1,  2]"),
        (b"no json", b"no json"),
    ],
)
def test_only_the_name_of_the_model_is_ever_changed(body: bytes, sent: bytes) -> None:
    assert openai.with_model(body, "m") == sent


@pytest.mark.parametrize("base", ["", "/v1"])
async def test_a_request_has_the_upstreams_name_of_the_model_and_its_key(
    fake: FakeUpstream, upstream: UpstreamClient, base: str
) -> None:
    model = Model(name="mine", kind="openai", url=fake.at("answer") + base, upstream_model="theirs")
    request = ModelRequest(path="/v1/chat/completions", body=b'{"model":"mine"}', target="mine", key="secret")

    assert await body_of(lambda sink: OpenAIEngine(upstream).answer(model, request, sink)) == ANSWER
    received = fake.requests[0]
    assert (received.path, received.body) == ("/answer/v1/chat/completions", b'{"model":"theirs"}')
    assert (received.headers["authorization"], received.headers["content-type"]) == (
        "Bearer secret",
        "application/json",
    )


async def test_a_model_with_a_prefix_receives_the_requested_name(fake: FakeUpstream, upstream: UpstreamClient) -> None:
    model = Model(name="gpt-*", kind="openai", url=fake.at("stream"))
    body = b'{"model": "gpt-9",  "stream": true}'
    request = ModelRequest(path="/v1/chat/completions", body=body, target="gpt-9", stream=True)

    assert await events_of(lambda sink: OpenAIEngine(upstream).answer(model, request, sink)) == EVENTS
    assert fake.requests[0].body == body
    assert "authorization" not in fake.requests[0].headers


async def test_a_model_without_an_address_is_unreachable(upstream: UpstreamClient) -> None:
    request = ModelRequest(path="/v1/chat/completions", body=b"{}", target="mine")

    with pytest.raises(ModelUnreachable):
        await OpenAIEngine(upstream).answer(Model(name="mine", kind="openai"), request, Events())
