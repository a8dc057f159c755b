"""Several callers of one job: callers with the same idempotency key, and clients that retry while it is held."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from fakes.behaviours import ANSWER, EVENTS
from fakes.upstream import FakeUpstream, fake_upstream
from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.work.admin.people import identify
from signoff.work.admit import admit
from signoff.work.inference.caching import store_answer
from signoff.work.jobs.cancel import cancel
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
KEY = {"Idempotency-Key": "one"}
Call = asyncio.Future[tuple[int, bytes]]
EXPECTED = {False: ANSWER, True: b"".join(EVENTS)}


async def call(server: Live, token: str, *, stream: bool = False, **more: Any) -> tuple[int, bytes]:
    """Call the model `slow` with the idempotency key; return the status and the body."""
    headers = {"authorization": f"Bearer {token}"} | KEY
    body = chat("hello", "slow", stream=stream, **more)
    async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as response:
        return response.status, await response.read()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Return the URL of a database that two processes share; None for the SQLite file in their directory."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@contextlib.asynccontextmanager
async def slow(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[FakeUpstream, Live, str]]:
    """Yield an upstream that answers when its `wake` is set, a server in front of it, and a token."""
    async with fake_upstream() as fake, live(tmp_path, **settings) as server:
        yield fake, server, await server.token()


@contextlib.asynccontextmanager
async def two_callers(
    tmp_path: Path, database_url: str | None, **more: Any
) -> AsyncIterator[tuple[FakeUpstream, tuple[Live, Live], Call, Call]]:
    """Yield an upstream, two servers on one database, a call at the first, and one at the other that waits for it."""
    settings = {"database_url": database_url}
    async with slow(tmp_path, **settings) as (fake, server, token), live(tmp_path, **settings) as other:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        task = asyncio.ensure_future(call(server, token, **more))
        await fake.until_stuck()
        joining_task = asyncio.ensure_future(call(other, token, **more))
        await until(lambda: has_waiters(other))
        yield fake, (server, other), task, joining_task


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leaver", [0, 4])
async def test_ten_callers_of_one_key_get_ten_answers_of_one_call_though_one_leaves(
    stream: bool, leaver: int, tmp_path: Path
) -> None:
    async with slow(tmp_path) as (fake, server, token):
        # given eleven callers with one key, of whom the first one starts the call
        await server.model("slow", kind="openai", url=fake.at("stream-when-woken" if stream else "answer-when-woken"))
        tasks = [asyncio.ensure_future(call(server, token, stream=stream))]
        await fake.until_stuck()
        tasks += [asyncio.ensure_future(call(server, token, stream=stream)) for _ in range(10)]
        await until(lambda: has_readers(server, 11))
        # when one of them leaves
        tasks.pop(leaver).cancel()
        await until(lambda: has_readers(server, 10))
        fake.wake.set()
        # then all others get the same bytes, from one call and one job
        assert [await task for task in tasks] == [(200, EXPECTED[stream])] * 10
        assert len(fake.requests) == 1
        assert [job.status for job in await jobs(server)] == ["success"]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_last_caller_who_leaves_stops_the_model(stream: bool, tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("hang-mid-stream" if stream else "hang-before-headers"))
        tasks = [asyncio.ensure_future(call(server, token, stream=stream)) for _ in range(3)]
        await fake.until_stuck()
        await until(lambda: has_readers(server, 3))
        for task in tasks:
            task.cancel()
        assert await fake.all_closed()
        job = await until(lambda: ended_job(server))
        assert job.error is not None
        assert (job.status, job.error.code) == ("fail", "cancelled")


async def test_a_caller_who_left_and_returns_with_the_same_key_starts_a_new_call(tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        task = asyncio.ensure_future(call(server, token))
        await fake.until_stuck()
        task.cancel()
        await until(lambda: ended_job(server))
        fake.wake.set()
        assert await call(server, token) == (200, ANSWER)
        assert sorted(job.status for job in await jobs(server)) == ["fail", "success"]


async def test_a_caller_who_joined_early_is_answered_though_the_first_caller_leaves(tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("answer"))
        # given a first caller whose row is written, but whose insert has not returned yet
        insert = server.services.store.jobs.insert
        is_inserted, may_return = asyncio.Event(), asyncio.Event()

        async def insert_slowly(*job: Any, **more: Any) -> Job:
            result = await insert(*job, **more)
            if not is_inserted.is_set():
                is_inserted.set()
                await may_return.wait()
            return result

        server.services.store.jobs.insert = insert_slowly  # type: ignore[method-assign]
        first = asyncio.ensure_future(call(server, token))
        await is_inserted.wait()
        second = asyncio.ensure_future(call(server, token))
        await until(lambda: has_readers(server, 1))
        # when the first one leaves
        first.cancel()
        assert (await server.ask("GET", "/v1/models", token))[0] == 200
        may_return.set()
        # then the second one has the answer
        assert await second == (200, ANSWER)


async def test_a_caller_at_another_process_gets_the_answer_of_the_same_call(
    tmp_path: Path, database_url: str | None
) -> None:
    async with two_callers(tmp_path, database_url) as (fake, _, task, joining_task):
        fake.wake.set()
        assert await task == await joining_task == (200, ANSWER)
        assert len(fake.requests) == 1


async def test_a_caller_at_another_process_is_answered_though_all_callers_at_the_first_leave(
    tmp_path: Path, database_url: str | None
) -> None:
    async with two_callers(tmp_path, database_url) as (fake, _, task, joining_task):
        task.cancel()
        fake.wake.set()
        assert await joining_task == (200, ANSWER)


async def test_a_joined_caller_gets_the_cached_answer_if_the_first_caller_leaves(
    tmp_path: Path, database_url: str | None
) -> None:
    async with two_callers(tmp_path, database_url, temperature=0) as (fake, (server, other), task, joining_task):
        # when an equal answer enters the cache, and the first caller leaves
        (job,) = await jobs(server)
        store_answer(other.services, msgspec.structs.replace(job, status="success", response=ANSWER))
        task.cancel()
        # then no model is called
        assert await joining_task == (200, ANSWER)
        assert [(each.status, each.cache) for each in await jobs(server)] == [("fail", "miss"), ("success", "hit")]
        assert len(fake.requests) == 1
        fake.wake.set()


async def test_a_caller_is_answered_though_the_process_of_the_first_caller_is_gone(tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("answer"))
        # given a job with that key whose process no longer renews its lease
        body = json.dumps(chat("hello", "slow", stream=False)).encode()
        caller = await identify(server.services, token)
        ask = Ask(door="openai", caller=caller, body=body, target="slow", lane="now", idempotency_key="one")
        job = msgspec.structs.replace(await admit(server.services, ask), attempt=1, lease="gone")
        await server.services.store.jobs.insert(job, actor="somebody", lease_seconds=0.2)
        # when another call comes, it gets an answer from a call of its own
        assert await call(server, token) == (200, ANSWER)
        interrupted = await server.services.store.jobs.get(job.id)
        assert interrupted is not None
        assert interrupted.error is not None
        assert interrupted.error.code == "interrupted"
        assert len(fake.requests) == 1


async def test_a_job_that_its_owner_cancels_is_cancelled_for_all_callers(tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("hang-before-headers"))
        tasks = [asyncio.ensure_future(call(server, token)) for _ in range(3)]
        await fake.until_stuck()
        await until(lambda: has_readers(server, 3))
        (job,) = await jobs(server)
        owner = Caller(user_id=job.user_id, token_id=job.token_id, role="user", email="user@example.com")
        await cancel(server.services, owner, job.id)
        for task in tasks:
            status, body = await task
            assert status == 409
            assert b"cancelled" in body
        assert len(fake.requests) == 1
        assert await fake.all_closed()


async def test_a_failure_is_reported_to_all_callers_who_joined(tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("broken"), attempts=1)
        responses = [await task for task in [asyncio.ensure_future(call(server, token)) for _ in range(5)]]
        assert {status for status, _ in responses} == {500}
        assert all(b"The GPU is on fire." in body for _, body in responses)


async def test_a_call_without_a_key_shares_nothing(tmp_path: Path) -> None:
    async with slow(tmp_path) as (_, server, token):
        for _ in range(2):
            status, _ = await server.ask("POST", "/v1/chat/completions", token, json=chat("hello"))
            assert status == 200
        assert len(await until(lambda: all_jobs_if(server, 2))) == 2


async def test_a_retry_of_the_official_client_joins_the_held_job(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("careful", review="always")
        # given a client that times out before the review
        async with openai.AsyncOpenAI(
            base_url=server.url + "/v1", api_key=await server.token(), timeout=1, max_retries=20
        ) as ai:
            task = asyncio.ensure_future(ai.chat.completions.create(**chat("secret", "careful")))
            job = await until(lambda: held_job(server))
            # when it retries several times
            await until(lambda: has_no_waiters(server))
            await until(lambda: has_waiters(server))
            await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
            # then it gets the answer of the same job
            assert (await task).choices[0].message.content == "secret"
        assert [each.id for each in await jobs(server)] == [job.id]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retry_finds_its_held_job_after_a_restart(stream: bool, tmp_path: Path) -> None:
    request = chat("secret", "careful", stream=stream)
    # given a held call whose server stops
    async with live(tmp_path, keep_alive_seconds=60) as server:
        token = await server.token()
        await server.model("careful", review="always")
        task = asyncio.ensure_future(server.ask("POST", "/v1/chat/completions", token, json=request))
        job = await until(lambda: held_job(server))
    task.cancel()  # the client would read on for two minutes, as its session has closed the connection
    await asyncio.wait([task])
    assert task.cancelled() or task.exception() or task.result()[0] >= 500
    # when the client retries
    async with live(tmp_path, keep_alive_seconds=60) as server:
        headers = {"x-stainless-retry-count": "1"}
        retry_task = asyncio.ensure_future(
            server.ask("POST", "/v1/chat/completions", token, json=request, headers=headers)
        )
        await until(lambda: has_waiters(server))
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        # then it is the same job
        status, payload = await retry_task
        assert status == 200
        assert "secret" in str(payload)
        assert [each.id for each in await jobs(server)] == [job.id]


async def test_only_a_retry_of_the_same_token_and_body_joins(tmp_path: Path) -> None:
    async with live(tmp_path, hold_seconds=0.05) as server:
        await server.model("careful", review="always")
        token, other = await server.token(), await server.token()
        retry = {"x-stainless-retry-count": "1"}

        async def ask(token: str, text: str, headers: dict[str, str]) -> str:
            body = chat(text, "careful")
            status, payload = await server.ask("POST", "/v1/chat/completions", token, json=body, headers=headers)
            assert status == 504
            return payload["error"]["job_id"]

        first = await ask(token, "one", {"x-stainless-retry-count": "0"})
        assert await ask(token, "one", retry) == first
        assert await ask(token, "two", retry) != first
        assert await ask(other, "one", retry) != first


async def jobs(server: Live) -> list[Job]:
    """Return all jobs."""
    return await server.services.store.jobs.list(JobFilter())


async def all_jobs_if(server: Live, count: int) -> list[Job] | None:
    """Return all jobs once there are `count` of them; else None."""
    rows = await jobs(server)
    return rows if len(rows) == count else None


async def ended_job(server: Live) -> Job | None:
    """Return a job that has ended; None if there is none."""
    return next((job for job in await jobs(server) if job.is_terminal), None)


async def held_job(server: Live) -> Job | None:
    """Return a held job; None if there is none."""
    return next((job for job in await jobs(server) if job.status == "human"), None)


async def has_readers(server: Live, count: int) -> bool | None:
    """Return True if `count` callers read from the broadcasts of the server; else None."""
    shared = server.services.runtime.inflight_calls._broadcasts.values()
    return sum(each._readers for each in shared) == count or None


async def has_waiters(server: Live) -> bool | None:
    """Return True if a caller waits for a change of a job; else None."""
    return bool(server.services.runtime.watcher._events) or None


async def has_no_waiters(server: Live) -> bool | None:
    """Return True if no caller waits for a change of a job; else None."""
    return not server.services.runtime.watcher._events or None
