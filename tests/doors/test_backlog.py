"""A user's jobs that have not ended are bounded, whichever door they come through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from signoff.core.ask import Ask
from signoff.core.filters import JobFilter
from signoff.core.stream import IncomingMessage, Stream
from signoff.work.accept import accept, stream_caller
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio

LATER = "2100-01-01T00:00:00Z"
DOORS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("/api/jobs", {"body": chat("hello", "careful"), "due_at": LATER}, {}),
    ("/enqueue", {"input": "hello", "model": "careful"}, {}),
    ("/generate?wait=0", {"content": "hello", "meta": {"model": "careful"}}, {}),
    ("/chat_completion?wait=0", {"messages": [{}], "meta": {"model": "careful"}}, {}),
    ("/v1/chat/completions", chat("hello", "careful"), {"prefer": "wait=0"}),
    ("/post/predict?id=careful", {"input": "hello"}, {"prefer": "wait=0"}),
]


def code_of(response: Any) -> str | None:
    """Return the code of an error in the format of any door."""
    return response.get("code") or response.get("error", {}).get("code")


async def fill(server: Live, token: str | None, count: int) -> list[str]:
    """Submit jobs that do not end; return their ids."""
    path, body, _ = DOORS[0]
    replies = [await server.ask("POST", path, token, json=body) for _ in range(count)]
    assert {status for status, _ in replies} == {202}
    return [reply["job_id"] for _, reply in replies]


@pytest.mark.parametrize(("path", "body", "headers"), DOORS)
async def test_every_door_refuses_a_job_beyond_the_bound(
    path: str, body: dict[str, Any], headers: dict[str, str], tmp_path: Path
) -> None:
    async with live(tmp_path, max_waiting_jobs=3, anonymous_role="user") as server:
        await server.model("careful", review="always")
        for token in (await server.token(), await server.token("admin"), None):
            await fill(server, token, 3)
            status, response = await server.ask("POST", path, token, json=body, headers=dict(headers))
            assert status == 429, response
            # the door of text generation has a message only
            assert code_of(response) in {"backlog_full", None}
            assert "max_waiting_jobs" in str(response)


REPEATABLE: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("/api/jobs", {"target": "careful", "body": chat("hello", "careful")}, {"idempotency-key": "k"}),
    ("/generate?wait=0", {"job_id": "mine", "content": "hello", "meta": {"model": "careful"}}, {}),
    ("/v1/chat/completions", chat("hello", "careful"), {"prefer": "wait=0", "idempotency-key": "k"}),
]


@pytest.mark.parametrize(("path", "body", "headers"), REPEATABLE)
async def test_a_repeated_request_finds_its_job_beyond_the_bound(
    path: str, body: dict[str, Any], headers: dict[str, str], tmp_path: Path
) -> None:
    async with live(tmp_path, max_waiting_jobs=3) as server:
        await server.model("careful", review="always")
        token = await server.token()
        first = await server.ask("POST", path, token, json=body, headers=dict(headers))
        await fill(server, token, 2)
        assert (await server.ask("POST", DOORS[0][0], token, json=DOORS[0][1]))[0] == 429
        again = await server.ask("POST", path, token, json=body, headers=dict(headers))
        assert job_id_of(again[1]) == job_id_of(first[1]) is not None, again
        _, jobs = await server.ask("GET", "/api/jobs?total=1", token)
        assert jobs["total"] == 3


def job_id_of(response: Any) -> str | None:
    """Return the id of the job in an answer, or in an error of OpenAI's format."""
    return response.get("job_id") or response.get("error", {}).get("job_id")


async def test_a_retry_is_refused_beyond_the_bound_and_a_cancellation_makes_way(tmp_path: Path) -> None:
    async with live(tmp_path, max_waiting_jobs=2) as server:
        await server.model("careful", review="always")
        token = await server.token()
        first, _ = await fill(server, token, 2)
        assert (await server.ask("DELETE", f"/api/jobs/{first}", token))[0] == 200

        async def is_taken() -> bool | None:
            path, body, _ = DOORS[0]
            return (await server.ask("POST", path, token, json=body))[0] == 202 or None

        await until(is_taken)
        status, refusal = await server.ask("POST", f"/api/jobs/{first}/retry", token)
        assert (status, refusal["code"]) == (429, "backlog_full")


async def test_the_bytes_of_waiting_jobs_are_bounded(tmp_path: Path) -> None:
    async with live(tmp_path, max_waiting_bytes=100_000) as server:
        token = await server.token()
        path, body, _ = DOORS[0]
        large = body | {"body": chat("x" * 40_000), "target": "echo"}
        replies = [await server.ask("POST", path, token, json=large) for _ in range(4)]
        assert [status for status, _ in replies] == [202, 202, 429, 429]
        assert "`max_waiting_bytes`" in replies[-1][1]["detail"]
        # answers that nobody waits for are not bounded by this
        assert (await server.ask("POST", "/v1/chat/completions", token, json=chat("x" * 40_000)))[0] == 200


async def test_a_message_of_a_stream_is_never_refused_for_it(tmp_path: Path) -> None:
    stream = Stream(name="one", scheme="amqp", host="h", sealed=b"", requests="in", responses="out")
    async with live(tmp_path, max_waiting_jobs=2) as server:
        caller = await stream_caller(server.services, stream)
        for number in range(5):
            body = b'{"model": "echo/hang", "messages": []}'
            ask = Ask(door="topics", caller=caller, body=body, target="echo/hang", reply_to=stream.name)
            job = await accept(server.services, ask, IncomingMessage(id=str(number), body=body))
            assert job.status == "bot"
        assert len(await server.services.store.jobs.list(JobFilter())) == 5
