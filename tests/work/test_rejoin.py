"""Callers who leave while their answer is held, and send the request again: they get the job that they left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from signoff.core.access import Caller
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job
from signoff.work.jobs.cancel import cancel
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import ANSWER_SECONDS, Live, chat, live, until

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
APPROVE = VerdictRequest(verdict="approve")
RETRY = {"x-stainless-retry-count": "1"}
NOT_WAITING = {"prefer": "wait=0"}
Response = tuple[int, str]


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Return the URL of a database that two processes share; None for the SQLite file in their directory."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@contextlib.asynccontextmanager
async def holding(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Live, str]]:
    """Yield a server with the held model `careful`, and a token."""
    async with live(tmp_path, keep_alive_seconds=60, **settings) as server:
        await server.model("careful", review="always")
        yield server, await server.token()


async def call(server: Live, token: str, *, text: str = "secret", headers: Any = None, **more: Any) -> Response:
    """Call the held model; return the status and the body."""
    head = {"authorization": f"Bearer {token}"} | (headers or {})
    path = more.pop("path", "/v1/chat/completions")
    body = more.pop("body", None) or chat(text, "careful", **more)
    async with server.http.post(server.url + path, json=body, headers=head) as response:
        return response.status, await response.text()


async def leave(server: Live, token: str, **more: Any) -> Job:
    """Call the held model, disconnect once the answer is held, and return the job."""
    earlier = {job.id for job in await jobs(server)}
    task = asyncio.ensure_future(call(server, token, **more))

    async def new_held_job() -> Job | None:
        held = [job for job in await jobs(server) if job.id not in earlier and job.status == "human"]
        return held[0] if held and server.services.runtime.watcher._events else None

    job = await until(new_held_job)
    task.cancel()
    await until(lambda: is_departed(server, job))
    return job


async def is_departed(server: Live, job: Job) -> bool | None:
    """Return True once it is recorded that the caller of `job` has left."""
    return bool(await server.services.store.departures.left_at([job.id])) or None


async def jobs(server: Live) -> list[Job]:
    return await server.services.store.jobs.list(JobFilter())


async def has_waiters(server: Live) -> bool | None:
    return bool(server.services.runtime.watcher._events) or None


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_verdict_that_came_meanwhile_is_delivered_once(stream: bool, tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        for headers in ({}, RETRY):
            job = await leave(server, token, stream=stream)
            edit = Edit(response='"signed off"')
            await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve", edit=edit))
            # the equal call gets the answer of that job
            status, body = await call(server, token, stream=stream, headers=headers)
            assert (status, "signed off" in body) == (200, True)
        # the next one is a new job
        status, _ = await call(server, token, stream=stream, headers=RETRY | NOT_WAITING)
        assert status == 504
        assert sorted(job.status for job in await jobs(server)) == ["human", "success", "success"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_rejection_that_came_meanwhile_is_delivered_with_its_reason(stream: bool, tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        job = await leave(server, token, stream=stream)
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="reject", reason="not like this"))
        status, body = await call(server, token, stream=stream)
        assert (status, "not like this" in body) == (403, True)
        assert len(await jobs(server)) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("way", ["left", "504"])
async def test_an_equal_call_joins_the_held_job_that_its_caller_left(way: str, stream: bool, tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        if way == "left":
            job = await leave(server, token, stream=stream)
        else:
            assert (await call(server, token, stream=stream, headers=NOT_WAITING))[0] == 504
            (job,) = await jobs(server)
        joining = asyncio.ensure_future(call(server, token, stream=stream))
        await until(lambda: has_waiters(server))
        # a second one that comes while the first waits is a job of its own
        assert (await call(server, token, stream=stream, headers=NOT_WAITING))[0] == 504
        await decide(server.services, REVIEWER, job.id, APPROVE)
        status, body = await joining
        assert (status, "secret" in body) == (200, True)
        assert len(await jobs(server)) == 2


async def test_a_job_that_another_caller_waits_for_is_not_left(tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        key = {"idempotency-key": "k"}
        leaving = asyncio.ensure_future(call(server, token, headers=key))
        await until(lambda: has_waiters(server))
        staying = asyncio.ensure_future(call(server, token, headers=key))
        (job,) = await jobs(server)
        watched = server.services.runtime.caller_leases._counts

        async def waits(callers: int) -> bool | None:
            return watched[job.id] == callers or None

        await until(lambda: waits(2))
        leaving.cancel()
        await until(lambda: waits(1))
        await server.services.runtime.background.finish(ANSWER_SECONDS)
        assert await is_departed(server, job) is None
        await decide(server.services, REVIEWER, job.id, APPROVE)
        assert (await staying)[0] == 200


async def test_reviewers_see_since_when_nobody_waits(tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        job = await leave(server, token)
        for path in (f"/job?id={job.id}", f"/api/jobs/{job.id}"):
            _, shown = await server.ask("GET", path, await server.token("reviewer"))
            assert shown["caller_left_at"] > shown["created_at"]
        _, page = await server.ask("GET", f"/dashboard/review/{job.id}", await server.token("reviewer"))
        assert "<dt>Caller</dt><dd>left" in page
        joining = asyncio.ensure_future(call(server, token))
        await until(lambda: has_waiters(server))
        _, page = await server.ask("GET", f"/dashboard/review/{job.id}", await server.token("reviewer"))
        assert "<dt>Caller</dt>" not in page
        await decide(server.services, REVIEWER, job.id, APPROVE)
        assert (await joining)[0] == 200
        _, shown = await server.ask("GET", f"/job?id={job.id}", token)
        assert shown["caller_left_at"] is None


async def test_only_an_equal_call_of_the_same_token_joins(tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        other_token, other_user = await server.token(), await server.token(email="other@example.com")
        job = await leave(server, token)
        await decide(server.services, REVIEWER, job.id, APPROVE)
        prompt = {"model": "careful", "prompt": "secret"}
        for strange in (
            call(server, other_token, headers=NOT_WAITING),
            call(server, other_user, headers=NOT_WAITING),
            call(server, token, text="other", headers=NOT_WAITING),
            call(server, token, stream=True, headers=NOT_WAITING),
            call(server, token, path="/v1/completions", body=prompt, headers=NOT_WAITING),
        ):
            assert (await strange)[0] == 504
        assert (await call(server, token))[0] == 200
        assert len(await jobs(server)) == 6


async def test_the_answer_of_a_request_that_is_asked_again_reaches_the_caller_who_returns(tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        job = await leave(server, token)
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="redo"))
        joining = asyncio.ensure_future(call(server, token, headers=RETRY))

        async def second_round() -> bool | None:
            held = await server.services.store.jobs.get(job.id)
            return (held is not None and (held.status, held.round) == ("human", 2)) or None

        await until(second_round)
        await until(lambda: has_waiters(server))
        await decide(server.services, REVIEWER, job.id, APPROVE)
        assert (await joining)[0] == 200
        assert len(await jobs(server)) == 1


async def test_a_cancelled_job_is_not_joined(tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        job = await leave(server, token)
        owner = Caller(user_id=job.user_id, token_id=job.token_id, role="user", email="user@example.com")
        await cancel(server.services, owner, job.id)
        assert (await call(server, token, headers=NOT_WAITING))[0] == 504
        assert len(await jobs(server)) == 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_caller_whose_held_job_is_cancelled_is_told_so(stream: bool, tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        waiting = asyncio.ensure_future(call(server, token, stream=stream))
        await until(lambda: has_waiters(server))
        (job,) = await jobs(server)
        admin = Caller(user_id=98, token_id=98, role="admin", email="ada@example.com")
        await cancel(server.services, admin, job.id)
        status, body = await waiting
        assert (status, '"cancelled"' in body, "by an admin" in body) == (200 if stream else 409, True, True)


async def test_a_caller_who_left_a_run_with_a_held_step_gets_its_answer(tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        prompt = {"name": "ask_careful", "body": "{question}", "model": "careful"}
        assert (await server.ask("POST", "/api/prompts", token, json=prompt))[0] == 201
        pipeline = {"name": "flow", "body": "ask_careful(question)"}
        assert (await server.ask("POST", "/api/pipelines", token, json=pipeline))[0] == 201
        body = chat("secret", "flow")
        assert (await call(server, token, body=body, headers=NOT_WAITING))[0] == 504
        held = [job for job in await server.services.store.jobs.list(JobFilter(status="human")) if job.parent_id]
        joining = asyncio.ensure_future(call(server, token, body=body))
        await until(lambda: has_waiters(server))
        await decide(server.services, REVIEWER, held[0].id, APPROVE)
        status, answer = await joining
        assert (status, "secret" in answer, '"created":0' in answer) == (200, True, False)


async def test_the_other_doors_that_wait_join_too(tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        for path in ("/openai/v1/chat/completions", "/api/openai/v1/chat/completions", "/post/predict?id=careful"):
            job = await leave(server, token, path=path)
            await decide(server.services, REVIEWER, job.id, APPROVE)
            status, body = await call(server, token, path=path, headers={"cache-control": "no-store"})
            assert (status, "secret" in body) == (200, True)
        assert len(await jobs(server)) == 3


async def test_a_caller_may_return_at_another_process(tmp_path: Path, database_url: str | None) -> None:
    settings = {"database_url": database_url}
    async with holding(tmp_path, **settings) as (server, token), live(tmp_path, **settings) as other:
        job = await leave(server, token)
        joining = asyncio.ensure_future(call(other, token))
        await until(lambda: has_waiters(other))
        await decide(server.services, REVIEWER, job.id, APPROVE)
        assert (await joining)[0] == 200
        job = await leave(server, token)
        await decide(server.services, REVIEWER, job.id, APPROVE)
        assert (await call(other, token))[0] == 200
        assert len(await jobs(server)) == 2


async def test_the_head_of_a_held_stream_is_sent_at_once(tmp_path: Path) -> None:
    async with holding(tmp_path) as (server, token):
        body, headers = chat("secret", "careful", stream=True), {"authorization": f"Bearer {token}"}
        async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as response:
            # comments in other silences come after a minute, and those in this one in time for impatient clients
            assert response.status == 200
            for _ in range(2):
                assert await response.content.readuntil(b"\n\n") == b": waiting for a person\n\n"
            (job,) = await jobs(server)
            assert response.headers["x-signoff-job"] == job.id
            await decide(server.services, REVIEWER, job.id, APPROVE)
            assert b"secret" in await response.read()
