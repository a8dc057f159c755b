"""Several callers of one job: those who share a key, and a client that asks again for what is still held."""

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
EXPECTED = {False: ANSWER, True: b"".join(EVENTS)}


async def call(server: Live, token: str, *, stream: bool = False, **more: Any) -> tuple[int, bytes]:
    """The status and the bytes of one call of the model `slow`, under the key."""
    told = {"authorization": f"Bearer {token}"} | KEY
    body = chat("hello", "slow", stream=stream, **more)
    async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=told) as response:
        return response.status, await response.read()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Return the address of a database that two processes share; None for the file in their folder."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@contextlib.asynccontextmanager
async def slow(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[FakeUpstream, Live, str]]:
    """An upstream that answers when it is woken, a server in front of it, and a token."""
    async with fake_upstream() as fake, live(tmp_path, **settings) as server:
        yield fake, server, await server.token()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leaver", [0, 4])
async def test_ten_callers_of_one_key_get_ten_answers_of_one_call_though_one_leaves(
    stream: bool, leaver: int, tmp_path: Path
) -> None:
    async with slow(tmp_path) as (fake, server, token):
        # given eleven callers with one key, the first one first, while the model works
        await server.model("slow", kind="openai", url=fake.at("stream-when-woken" if stream else "answer-when-woken"))
        asking = [asyncio.ensure_future(call(server, token, stream=stream))]
        await fake.until_stuck()
        asking += [asyncio.ensure_future(call(server, token, stream=stream)) for _ in range(10)]
        await until(lambda: readers(server, 11))
        # when one of them leaves
        asking.pop(leaver).cancel()
        await until(lambda: readers(server, 10))
        fake.wake.set()
        # then all others have the same answer, to the byte, of one call and one job
        assert [await each for each in asking] == [(200, EXPECTED[stream])] * 10
        assert len(fake.requests) == 1
        assert [job.status for job in await jobs(server)] == ["success"]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_last_caller_who_leaves_stops_the_model(stream: bool, tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("hang-mid-stream" if stream else "hang-before-headers"))
        asking = [asyncio.ensure_future(call(server, token, stream=stream)) for _ in range(3)]
        await fake.until_stuck()
        await until(lambda: readers(server, 3))
        for each in asking:
            each.cancel()
        assert await fake.all_closed()
        job = await until(lambda: an_ended(server))
        assert job.error is not None
        assert (job.status, job.error.code) == ("fail", "cancelled")


async def test_who_comes_back_with_their_key_after_they_left_is_asked_for_anew(tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        asking = asyncio.ensure_future(call(server, token))
        await fake.until_stuck()
        asking.cancel()
        await until(lambda: an_ended(server))
        fake.wake.set()
        assert await call(server, token) == (200, ANSWER)
        assert sorted(job.status for job in await jobs(server)) == ["fail", "success"]


async def test_who_joins_before_the_first_one_asks_is_answered_though_that_one_leaves(tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("answer"))
        # given a first caller whose row stands, but who does not know it yet
        inserted = server.services.store.jobs.insert
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(*job: Any, **more: Any) -> Job:
            done = await inserted(*job, **more)
            if not begun.is_set():
                begun.set()
                await go_on.wait()
            return done

        server.services.store.jobs.insert = slowly  # type: ignore[method-assign]
        first = asyncio.ensure_future(call(server, token))
        await begun.wait()
        second = asyncio.ensure_future(call(server, token))
        await until(lambda: readers(server, 1))
        # when the first one leaves
        first.cancel()
        assert (await server.ask("GET", "/v1/models", token))[0] == 200
        go_on.set()
        # then the second one has the answer
        assert await second == (200, ANSWER)


async def test_a_caller_at_another_process_has_the_answer_of_the_one_call(
    tmp_path: Path, database_url: str | None
) -> None:
    both = {"database_url": database_url}
    async with slow(tmp_path, **both) as (fake, server, token), live(tmp_path, **both) as other:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        asking = asyncio.ensure_future(call(server, token))
        await fake.until_stuck()
        joined = asyncio.ensure_future(call(other, token))
        await until(lambda: waiters(other))
        fake.wake.set()
        assert await asking == await joined == (200, ANSWER)
        assert len(fake.requests) == 1


async def test_a_caller_at_another_process_is_answered_though_all_at_the_first_one_leave(
    tmp_path: Path, database_url: str | None
) -> None:
    both = {"database_url": database_url}
    async with slow(tmp_path, **both) as (fake, server, token), live(tmp_path, **both) as other:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        asking = asyncio.ensure_future(call(server, token))
        await fake.until_stuck()
        joined = asyncio.ensure_future(call(other, token))
        await until(lambda: waiters(other))
        asking.cancel()
        fake.wake.set()
        assert await joined == (200, ANSWER)


async def test_a_caller_whose_askers_leave_has_the_answer_that_the_cache_has_by_then(
    tmp_path: Path, database_url: str | None
) -> None:
    both = {"database_url": database_url}
    async with slow(tmp_path, **both) as (fake, server, token), live(tmp_path, **both) as other:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        asking = asyncio.ensure_future(call(server, token, temperature=0))
        await fake.until_stuck()
        joined = asyncio.ensure_future(call(other, token, temperature=0))
        await until(lambda: waiters(other))
        # when the same is signed off elsewhere, and who asked leaves
        (job,) = await jobs(server)
        store_answer(other.services, msgspec.structs.replace(job, status="success", response=ANSWER))
        asking.cancel()
        # then nobody is asked
        assert await joined == (200, ANSWER)
        assert [(each.status, each.cache) for each in await jobs(server)] == [("fail", "miss"), ("success", "hit")]
        assert len(fake.requests) == 1
        fake.wake.set()


async def test_a_caller_is_answered_though_the_process_that_asked_has_vanished(tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("answer"))
        # given a job of that key whose process renews its lease no more
        body = json.dumps(chat("hello", "slow", stream=False)).encode()
        caller = await identify(server.services, token)
        ask = Ask(door="openai", caller=caller, body=body, target="slow", lane="now", idempotency_key="one")
        job = msgspec.structs.replace(await admit(server.services, ask), attempt=1, lease="gone")
        await server.services.store.jobs.insert(job, actor="somebody", lease_seconds=0.2)
        # when another call comes, it gets an answer, at its own asking
        assert await call(server, token) == (200, ANSWER)
        vanished = await server.services.store.jobs.get(job.id)
        assert vanished is not None
        assert vanished.error is not None
        assert vanished.error.code == "interrupted"
        assert len(fake.requests) == 1


async def test_what_its_owner_cancels_is_cancelled_for_all(tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("hang-before-headers"))
        asking = [asyncio.ensure_future(call(server, token)) for _ in range(3)]
        await fake.until_stuck()
        await until(lambda: readers(server, 3))
        (job,) = await jobs(server)
        owner = Caller(user_id=job.user_id, token_id=job.token_id, role="user", email="user@example.com")
        await cancel(server.services, owner, job.id)
        for each in asking:
            status, body = await each
            assert status == 409
            assert b"cancelled" in body
        assert len(fake.requests) == 1
        assert await fake.all_closed()


async def test_a_failure_is_told_to_all_who_joined(tmp_path: Path) -> None:
    async with slow(tmp_path) as (fake, server, token):
        await server.model("slow", kind="openai", url=fake.at("broken"), attempts=1)
        told = [await each for each in [asyncio.ensure_future(call(server, token)) for _ in range(5)]]
        assert {status for status, _ in told} == {500}
        assert all(b"The GPU is on fire." in body for _, body in told)


async def test_a_call_without_a_key_shares_nothing(tmp_path: Path) -> None:
    async with slow(tmp_path) as (_, server, token):
        for _ in range(2):
            status, _ = await server.ask("POST", "/v1/chat/completions", token, json=chat("hello"))
            assert status == 200
        assert len(await until(lambda: jobs_in_all(server, 2))) == 2


async def test_the_official_clients_own_retry_joins_the_held_job(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("careful", review="always")
        # given a client whose patience ends before the reviewer's
        async with openai.AsyncOpenAI(
            base_url=server.url + "/v1", api_key=await server.token(), timeout=1, max_retries=20
        ) as ai:
            asking = asyncio.ensure_future(ai.chat.completions.create(**chat("secret", "careful")))
            job = await until(lambda: a_held(server))
            # when it asks again, and again
            await until(lambda: left(server))
            await until(lambda: waiters(server))
            await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
            # then it gets the answer of its one job
            assert (await asking).choices[0].message.content == "secret"
        assert [each.id for each in await jobs(server)] == [job.id]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retry_finds_its_held_job_after_a_restart(stream: bool, tmp_path: Path) -> None:
    request = chat("secret", "careful", stream=stream)
    # given a held call whose server stops
    async with live(tmp_path, keep_alive_seconds=60) as server:
        token = await server.token()
        await server.model("careful", review="always")
        asking = asyncio.ensure_future(server.ask("POST", "/v1/chat/completions", token, json=request))
        job = await until(lambda: a_held(server))
    await asyncio.wait([asking])
    assert asking.exception() or asking.result()[0] >= 500
    # when the client asks again
    async with live(tmp_path, keep_alive_seconds=60) as server:
        retry = {"x-stainless-retry-count": "1"}
        again = asyncio.ensure_future(server.ask("POST", "/v1/chat/completions", token, json=request, headers=retry))
        await until(lambda: waiters(server))
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        # then it is the same job
        status, told = await again
        assert status == 200
        assert "secret" in str(told)
        assert [each.id for each in await jobs(server)] == [job.id]


async def test_only_a_retry_of_the_same_token_and_body_joins(tmp_path: Path) -> None:
    async with live(tmp_path, hold_seconds=0.05) as server:
        await server.model("careful", review="always")
        token, other = await server.token(), await server.token()
        retry = {"x-stainless-retry-count": "1"}

        async def ask(token: str, text: str, headers: dict[str, str]) -> str:
            body = chat(text, "careful")
            status, told = await server.ask("POST", "/v1/chat/completions", token, json=body, headers=headers)
            assert status == 504
            return told["error"]["job_id"]

        first = await ask(token, "one", {"x-stainless-retry-count": "0"})
        assert await ask(token, "one", retry) == first
        assert await ask(token, "two", retry) != first
        assert await ask(other, "one", retry) != first
        assert await ask(token, "one", {}) != first


async def jobs(server: Live) -> list[Job]:
    return await server.services.store.jobs.list(JobFilter())


async def jobs_in_all(server: Live, count: int) -> list[Job] | None:
    found = await jobs(server)
    return found if len(found) == count else None


async def an_ended(server: Live) -> Job | None:
    return next((job for job in await jobs(server) if job.is_terminal), None)


async def a_held(server: Live) -> Job | None:
    return next((job for job in await jobs(server) if job.status == "human"), None)


async def readers(server: Live, count: int) -> bool | None:
    """Whether so many callers read along."""
    shared = server.services.runtime.inflight_calls._broadcasts.values()
    return sum(each._readers for each in shared) == count or None


async def waiters(server: Live) -> bool | None:
    """Whether somebody waits for a job."""
    return bool(server.services.runtime.watcher._events) or None


async def left(server: Live) -> bool | None:
    """Whether nobody waits for a job."""
    return not server.services.runtime.watcher._events or None
