"""Attempts as sinks: what they pass on at once, and what they hold back until the job is settled."""

from __future__ import annotations

import pytest

from signoff.core import sse
from signoff.core.api_paths import RESPONSES
from signoff.errors import ModelGarbled
from signoff.runtime import attempt as attempt_module
from signoff.runtime.attempt import Attempt
from support.sinks import Events
from support.stores import a_job

pytestmark = pytest.mark.anyio

PIECE = sse.event(b'{"choices": [{"delta": {"content": "a"}}]}')
COMPLETED = b"event: response.completed\n" + sse.event(b'{"type": "response.completed"}')
COMMENT = sse.comment(b"processing")
ROLE = sse.event(b'{"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}')
CREATED = sse.event(b'{"type": "response.created", "response": {"id": "resp_1"}}')


def started(**more: object) -> tuple[Attempt, Events]:
    """Return an attempt that asks a model, and its sink."""
    attempt, events = Attempt(a_job(**more), stream=True), Events()
    attempt.sink = events
    attempt.start()
    return attempt, events


@pytest.mark.parametrize(
    "reads",
    [
        [[PIECE, PIECE, sse.DONE]],
        [[PIECE], [PIECE], [sse.DONE]],
        [[PIECE], [], [PIECE, sse.DONE]],
    ],
)
async def test_the_last_event_waits_until_the_job_is_settled(reads: list[list[bytes]]) -> None:
    attempt, events = started()
    for read in reads:
        await attempt.send(read)
    assert events.received == [PIECE, PIECE]
    await attempt.send_last()
    assert events.received == [PIECE, PIECE, sse.DONE] == attempt.events


@pytest.mark.parametrize("reads", [[[PIECE, COMPLETED, sse.DONE]], [[PIECE, COMPLETED], [sse.DONE]]])
async def test_what_follows_a_last_event_waits_too(reads: list[list[bytes]]) -> None:
    attempt, events = started()
    for read in reads:
        await attempt.send(read)
    assert events.received == [PIECE]
    await attempt.send_last()
    assert events.received == [PIECE, COMPLETED, sse.DONE]


@pytest.mark.parametrize(
    "last",
    [
        sse.event(b'{"type": "response.completed", "response": {}}'),
        sse.event(b'{"response":{"id":"r"},"type":"response.incomplete"}'),
        sse.event(b'{"type":"response.failed"}'),
        sse.event(b'{"type":"message_stop"}'),
        sse.event(rb'{"type": "message_\u0073top"}'),
        b'event: message_stop\r\ndata: {"type": "message_stop"}\r\n\r\n',
        b'data: {"type": "response.completed"}\r\r',
        b'event:response.completed\ndata:{"type":"response.completed"}\n\n',
        b"id: 7\nevent: message_stop\ndata: {}\n\n",
        b'data: {"type":\ndata: "message_stop"}\n\n',
        sse.event(rb'{"type": "response.completed", "response": {"output": [{"text": "half \ud83d"}]}}'),
        b"data:[DONE]\n\n",
        b"data: [DONE] \r\n\r\n",
    ],
)
async def test_a_last_event_waits_however_its_server_writes_it(last: bytes) -> None:
    attempt, events = started()
    await attempt.send([PIECE, last])
    assert events.received == [PIECE]
    await attempt.send_last()
    assert events.received == [PIECE, last]


@pytest.mark.parametrize(
    ("path", "delta", "last"),
    [
        ("/v1/images/generations", "image_generation.partial_image", "image_generation.completed"),
        ("/v1/images/edits", "image_edit.partial_image", "image_edit.completed"),
        ("/v1/audio/speech", "speech.audio.delta", "speech.audio.done"),
        ("/v1/audio/transcriptions", "transcript.text.delta", "transcript.text.done"),
    ],
)
async def test_the_end_of_an_image_of_speech_and_of_a_transcription_waits_too(path: str, delta: str, last: str) -> None:
    attempt, events = started(path=path)
    pieces = [sse.event(f'{{"type": "{kind}", "text": "{last}"}}'.encode()) for kind in (delta, last)]
    await attempt.send(pieces)
    assert events.received == pieces[:1]
    await attempt.send_last()
    assert events.received == pieces


@pytest.mark.parametrize(
    "piece",
    [
        sse.event(b'{"choices": [{"delta": {"content": "message_stop, response.completed"}}]}'),
        sse.event(rb'{"choices": [{"delta": {"content": "\u0061\ud83d"}}]}'),
        b"event: response.output_text.delta\n"
        + sse.event(b'{"type": "response.output_text.delta", "delta": "event: response.completed"}'),
        sse.event(b'{"type": "content_block_delta", "delta": {"type": "message_stop"}}'),
        sse.event(b'["message_stop"]'),
        sse.event(b'{"type": 5, "text": "message_stop"}'),
        sse.event(b"message_stop {"),
        sse.comment(b"message_stop"),
    ],
)
async def test_an_event_that_only_mentions_a_last_one_is_passed_on(piece: bytes) -> None:
    attempt, events = started()
    await attempt.send([PIECE, piece])
    assert events.received == [PIECE, piece]


async def test_without_a_sink_nothing_is_passed_on() -> None:
    attempt, events = started()
    attempt.sink = None
    await attempt.send([PIECE, sse.DONE])
    await attempt.send_last()
    assert (events.received, attempt.events) == ([], [PIECE, sse.DONE])


async def test_a_second_try_discards_what_the_first_one_brought() -> None:
    attempt, events = started()
    await attempt.send([sse.DONE])
    attempt.discard()
    attempt.start()
    await attempt.send([PIECE, sse.DONE])
    await attempt.send_last()
    assert events.received == attempt.events == [PIECE, sse.DONE]


async def test_events_before_the_first_content_wait_for_it() -> None:
    attempt, events = started()
    for read in ([COMMENT], [ROLE, COMMENT]):
        await attempt.send(read)
    assert (events.received, attempt.has_begun) == ([], False)
    await attempt.send([PIECE])
    assert events.received == [COMMENT, ROLE, COMMENT, PIECE] == attempt.events
    assert attempt.has_begun


async def test_events_before_the_first_content_of_another_endpoint_are_discarded() -> None:
    attempt, events = started(path=RESPONSES)
    await attempt.send([COMMENT, CREATED])
    attempt.discard()
    await attempt.send([PIECE])
    assert events.received == [PIECE]
    assert attempt.job.upstream_object_id is None


async def test_a_whole_answer_keeps_the_headers_that_came_with_it() -> None:
    attempt, _ = started()
    await attempt.send([COMMENT])
    attempt.upstream_headers["x-ratelimit-remaining-requests"] = "9"
    attempt.take(b"{}")
    assert (attempt.body, attempt.events) == (b"{}", [])
    assert attempt.upstream_headers == {"x-ratelimit-remaining-requests": "9"}
    attempt.discard()  # another endpoint is asked, whose limits are others
    assert not attempt.upstream_headers


async def test_many_comments_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_module, "MAX_PREAMBLE_BYTES", 2 * len(COMMENT))
    attempt, events = started()
    await attempt.send([COMMENT, COMMENT])
    assert not events.received
    await attempt.send([COMMENT])
    assert events.received == [COMMENT] * 3


@pytest.mark.parametrize(("body", "is_sent"), [(b"{}", False), (b'{"background": true}', True)])
async def test_the_first_event_of_a_background_response_is_sent_at_once(body: bytes, is_sent: bool) -> None:
    attempt, events = started(path=RESPONSES, body=body)
    await attempt.send([CREATED])
    assert events.received == [CREATED] * is_sent
    assert attempt.job.upstream_object_id == "resp_1"


async def test_the_first_content_names_the_model() -> None:
    attempt, _ = started(path=RESPONSES)
    attempt.model = "fallback"
    assert attempt.job.model == "echo"
    await attempt.send([CREATED, PIECE])
    assert (attempt.job.model, attempt.job.upstream_object_id) == ("fallback", "resp_1")


async def test_an_answer_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_module, "MAX_ANSWER_BYTES", 2 * len(PIECE))
    attempt, events = started()
    await attempt.send([PIECE, PIECE])
    with pytest.raises(ModelGarbled, match="larger than"):
        await attempt.send([PIECE])
    with pytest.raises(ModelGarbled, match="larger than"):
        attempt.take(b"x" * (2 * len(PIECE) + 1))
    assert events.received == [PIECE, PIECE]
