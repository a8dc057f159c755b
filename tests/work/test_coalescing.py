"""Coalescing: equal, repeatable calls of one user that are under way at once share one upstream call."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fakes.behaviours import ANSWER, EVENTS
from fakes.upstream import FakeUpstream, fake_upstream
from signoff.core.filters import JobFilter
from signoff.work.admin.people import create_token, create_user
from signoff.work.admit import parse_sampling
from support.live_server import Live, live, until

pytestmark = pytest.mark.anyio
EXPECTED = {False: ANSWER, True: b"".join(EVENTS)}


async def call(server: Live, token: str, *, stream: bool = False, path: str = "chat/completions", **more: Any) -> Any:
    """Call the model `slow`; return the status, the body and the id of the job."""
    body = {"model": "slow", "messages": [], "temperature": 0, "stream": stream} | more
    headers = {"authorization": f"Bearer {token}"}
    async with server.http.post(f"{server.url}/v1/{path}", json=body, headers=headers) as response:
        return response.status, await response.read(), response.headers["x-signoff-job"]


async def has_readers(server: Live, count: int) -> bool | None:
    """Return True if `count` callers read from the broadcasts of the server; else None."""
    return sum(each._readers for each in server.services.runtime.inflight_calls._broadcasts.values()) == count or None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leaver", [0, 4])
async def test_equal_calls_get_the_answer_of_one_call_though_one_leaves(
    stream: bool, leaver: int, tmp_path: Path
) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True) as server:
        behaviour = "stream-when-woken" if stream else "answer-when-woken"
        await server.model("slow", kind="openai", url=fake.at(behaviour), cache="never")
        token, another = await server.token(), await server.token()
        tasks = [asyncio.ensure_future(call(server, token, stream=stream))]
        await fake.until_stuck()
        tasks += [asyncio.ensure_future(call(server, another, stream=stream)) for _ in range(10)]
        await until(lambda: has_readers(server, 11))
        tasks.pop(leaver).cancel()
        await until(lambda: has_readers(server, 10))
        fake.wake.set()
        answers = [await task for task in tasks]
        assert {answer[:2] for answer in answers} == {(200, EXPECTED[stream])}
        assert len(fake.requests) == 1
        # and they are one job, whose id each of them gets
        assert await until(lambda: ended_statuses(server, 1)) == ["success"]
        (job,) = await server.services.store.jobs.list(JobFilter())
        assert {answer[2] for answer in answers} == {job.id}
        # and a call that has ended is not shared
        assert (await call(server, token, stream=stream))[2] != job.id
        assert len(fake.requests) == 2


async def test_simultaneous_calls_share_one_upstream_call(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True) as server:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        token = await server.token()
        tasks = [asyncio.ensure_future(call(server, token)) for _ in range(50)]
        await until(lambda: has_readers(server, 50))
        fake.wake.set()
        assert {(await task)[:2] for task in tasks} == {(200, ANSWER)}
        assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("settings", "model", "one", "other", "calls"),
    [
        ({"coalesce": True}, {}, {}, {}, 1),
        ({"coalesce": True}, {}, {"temperature": 1, "seed": 7}, {"temperature": 1, "seed": 7}, 1),
        ({}, {"coalesce": True}, {}, {}, 1),
        ({}, {}, {}, {}, 2),
        ({"coalesce": True}, {"coalesce": False}, {}, {}, 2),
        ({"coalesce": True}, {}, {"temperature": 0.1}, {"temperature": 0.1}, 2),
        ({"coalesce": True}, {}, {"temperature": None}, {"temperature": None}, 2),
        ({"coalesce": True}, {}, {"user": "a"}, {"user": "b"}, 2),
        ({"coalesce": True}, {}, {}, {"path": "completions", "prompt": "hello"}, 2),
        ({"coalesce": True}, {}, {"path": "images/generations"}, {"path": "images/generations"}, 2),
    ],
)
async def test_only_equal_and_repeatable_calls_share_and_only_where_it_is_configured(
    settings: dict[str, Any],
    model: dict[str, Any],
    one: dict[str, Any],
    other: dict[str, Any],
    calls: int,
    tmp_path: Path,
) -> None:
    async with fake_upstream() as fake, live(tmp_path, **settings) as server:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"), **model)
        token = await server.token()
        tasks = [asyncio.ensure_future(call(server, token, **more)) for more in (one, other)]
        await until(lambda: both_callers_wait(server, fake, calls))
        fake.wake.set()
        assert {(await task)[:2] for task in tasks} == {(200, ANSWER)}
        assert len(fake.requests) == calls


async def test_different_users_never_share(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True) as server:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        tokens = [await server.token(email=f"{name}@example.com") for name in ("alice", "bob")]
        tasks = [asyncio.ensure_future(call(server, token)) for token in tokens]
        await fake.received(2)
        fake.wake.set()
        assert len({(await task)[2] for task in tasks}) == 2


async def test_calls_with_different_upstream_keys_never_share(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True) as server:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        token, tokens = await server.token(), []
        for secret in ("sk-work", "sk-play"):
            _, key = await server.ask("POST", "/api/keys", token, json={"name": secret, "key": secret})
            user = await create_user(server.services, "user@example.com", "user")
            tokens.append(await create_token(server.services, user, key_id=key["id"]))
        tasks = [asyncio.ensure_future(call(server, token)) for token in tokens]
        await until(lambda: both_callers_wait(server, fake, 2))
        fake.wake.set()
        assert {(await task)[:2] for task in tasks} == {(200, ANSWER)}
        assert {request.headers["authorization"] for request in fake.requests} == {"Bearer sk-work", "Bearer sk-play"}


async def test_when_the_last_caller_leaves_the_model_is_stopped_and_the_next_call_starts_anew(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True) as server:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        token = await server.token()
        tasks = [asyncio.ensure_future(call(server, token)) for _ in range(3)]
        await until(lambda: has_readers(server, 3))
        await fake.until_stuck()
        for task in tasks:
            task.cancel()
        await until(lambda: has_readers(server, 0))
        fake.wake.set()
        assert (await call(server, token))[:2] == (200, ANSWER)
        statuses = await until(lambda: ended_statuses(server, 2))
        assert statuses == ["fail", "success"]
        assert not server.services.runtime.inflight_calls._by_coalesce_key


async def test_a_failure_is_reported_to_all_callers(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True) as server:
        await server.model("slow", kind="openai", url=fake.at("broken-when-woken"), attempts=1)
        token = await server.token()
        tasks = [asyncio.ensure_future(call(server, token)) for _ in range(3)]
        await until(lambda: has_readers(server, 3))
        fake.wake.set()
        assert {(await task)[0] for task in tasks} == {500}
        assert len(fake.requests) == 1
        assert not server.services.runtime.inflight_calls._by_coalesce_key


async def test_calls_whose_answers_may_be_held_are_not_shared(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True, hold_seconds=0) as server:
        await server.model("slow", kind="openai", url=fake.at("answer"), review="always")
        token = await server.token()
        tasks = [asyncio.ensure_future(call(server, token)) for _ in range(2)]
        assert len({(await task)[2] for task in tasks}) == 2


@pytest.mark.parametrize(
    ("body", "is_so"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "seed": None}, True),
        ({"seed": 0}, True),
        ({"temperature": 0.5}, False),
        ({"temperature": None}, False),
        ({"temperature": "0"}, False),
        ({"messages": [{"temperature": 0, "seed": 1}]}, False),
        ([], False),
    ],
)
def test_a_request_is_repeatable_with_temperature_zero_or_a_seed(body: Any, is_so: bool) -> None:
    assert parse_sampling(json.dumps(body).encode()).is_repeatable is is_so


async def both_callers_wait(server: Live, fake: FakeUpstream, calls: int) -> bool | None:
    """Return True if there are `calls` upstream calls and two callers wait for them; else None."""
    shared = sum(each._readers for each in server.services.runtime.inflight_calls._broadcasts.values())
    return (len(fake.requests) == calls and (calls == 2 or shared == 2)) or None


async def ended_statuses(server: Live, count: int) -> list[str] | None:
    """Return the sorted statuses of the jobs once there are `count` of them and all have ended; else None."""
    jobs = await server.services.store.jobs.list(JobFilter())
    have_all_ended = len(jobs) == count and all(job.is_terminal for job in jobs)
    return sorted(job.status for job in jobs) if have_all_ended else None
