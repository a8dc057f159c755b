"""Attempts as sinks: what they pass on at once, and what they hold back until the job is settled."""

from __future__ import annotations

import pytest

from signoff.core import sse
from signoff.core.endpoints import RESPONSES
from signoff.errors import ModelGarbled
from signoff.runtime import attempt as attempt_module
from signoff.runtime.attempt import Attempt
from support.sinks import Events
from support.stores import a_job

pytestmark = pytest.mark.anyio

PIECE = sse.event(b'{"choices": []}')
COMPLETED = b"event: response.completed\n" + sse.event(b'{"type": "response.completed"}')
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


async def test_without_a_sink_nothing_is_passed_on() -> None:
    attempt, events = started()
    attempt.sink = None
    await attempt.send([PIECE, sse.DONE])
    await attempt.send_last()
    assert (events.received, attempt.events) == ([], [PIECE, sse.DONE])


async def test_a_second_try_discards_what_the_first_one_brought() -> None:
    attempt, events = started()
    await attempt.send([sse.DONE])
    attempt.start()
    await attempt.send([PIECE, sse.DONE])
    await attempt.send_last()
    assert events.received == attempt.events == [PIECE, sse.DONE]


async def test_the_first_event_names_the_model_and_the_response() -> None:
    attempt, _ = started(path=RESPONSES)
    attempt.model = "fallback"
    assert attempt.job.model == "echo"
    await attempt.send([CREATED])
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
