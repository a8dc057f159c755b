"""Equal calls of one user, of which equal answers are due, share one upstream call while it is under way."""

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
    """The status, the bytes and the job of one call of the model `slow`."""
    body = {"model": "slow", "messages": [], "temperature": 0, "stream": stream} | more
    headers = {"authorization": f"Bearer {token}"}
    async with server.http.post(f"{server.url}/v1/{path}", json=body, headers=headers) as response:
        return response.status, await response.read(), response.headers["x-signoff-job"]


async def readers(server: Live, count: int) -> bool | None:
    """Whether so many callers read along."""
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
        asking = [asyncio.ensure_future(call(server, token, stream=stream))]
        await fake.until_stuck()
        asking += [asyncio.ensure_future(call(server, another, stream=stream)) for _ in range(10)]
        await until(lambda: readers(server, 11))
        asking.pop(leaver).cancel()
        await until(lambda: readers(server, 10))
        fake.wake.set()
        answers = [await each for each in asking]
        assert {answer[:2] for answer in answers} == {(200, EXPECTED[stream])}
        assert len(fake.requests) == 1
        # and they are one job, which is told to each
        assert await until(lambda: ended(server, 1)) == ["success"]
        (job,) = await server.services.store.jobs.list(JobFilter())
        assert {answer[2] for answer in answers} == {job.id}
        # and what is over is shared no more
        assert (await call(server, token, stream=stream))[2] != job.id
        assert len(fake.requests) == 2


async def test_calls_that_come_at_the_same_instant_share(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True) as server:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        token = await server.token()
        asking = [asyncio.ensure_future(call(server, token)) for _ in range(50)]
        await until(lambda: readers(server, 50))
        fake.wake.set()
        assert {(await each)[:2] for each in asking} == {(200, ANSWER)}
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
        ({"coalesce": True}, {}, {}, {"path": "completions"}, 2),
        ({"coalesce": True}, {}, {"path": "images/generations"}, {"path": "images/generations"}, 2),
    ],
)
async def test_only_equal_calls_of_which_equal_answers_are_due_share_where_it_is_wanted(
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
        asking = [asyncio.ensure_future(call(server, token, **more)) for more in (one, other)]
        await until(lambda: both_are_here(server, fake, calls))
        fake.wake.set()
        assert {(await each)[:2] for each in asking} == {(200, ANSWER)}
        assert len(fake.requests) == calls


async def test_different_users_never_share(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True) as server:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        tokens = [await server.token(email=f"{name}@example.com") for name in ("alice", "bob")]
        asking = [asyncio.ensure_future(call(server, token)) for token in tokens]
        await fake.received(2)
        fake.wake.set()
        assert len({(await each)[2] for each in asking}) == 2


async def test_calls_with_different_upstream_keys_never_share(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True) as server:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        token, tokens = await server.token(), []
        for secret in ("sk-work", "sk-play"):
            _, key = await server.ask("POST", "/api/keys", token, json={"name": secret, "key": secret})
            user = await create_user(server.services, "user@example.com", "user")
            tokens.append(await create_token(server.services, user, key_id=key["id"]))
        asking = [asyncio.ensure_future(call(server, token)) for token in tokens]
        await until(lambda: both_are_here(server, fake, 2))
        fake.wake.set()
        assert {(await each)[:2] for each in asking} == {(200, ANSWER)}
        assert {request.headers["authorization"] for request in fake.requests} == {"Bearer sk-work", "Bearer sk-play"}


async def test_the_last_one_who_leaves_stops_the_model_and_who_comes_then_is_asked_for_anew(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True) as server:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        token = await server.token()
        asking = [asyncio.ensure_future(call(server, token)) for _ in range(3)]
        await until(lambda: readers(server, 3))
        await fake.until_stuck()
        for each in asking:
            each.cancel()
        await until(lambda: readers(server, 0))
        fake.wake.set()
        assert (await call(server, token))[:2] == (200, ANSWER)
        statuses = await until(lambda: ended(server, 2))
        assert statuses == ["fail", "success"]
        assert not server.services.runtime.inflight_calls._by_coalesce_key


async def test_a_failure_is_told_to_all_of_them(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True) as server:
        await server.model("slow", kind="openai", url=fake.at("broken-when-woken"), attempts=1)
        token = await server.token()
        asking = [asyncio.ensure_future(call(server, token)) for _ in range(3)]
        await until(lambda: readers(server, 3))
        fake.wake.set()
        assert {(await each)[0] for each in asking} == {500}
        assert len(fake.requests) == 1
        assert not server.services.runtime.inflight_calls._by_coalesce_key


async def test_what_may_be_held_is_held_for_each(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, coalesce=True, hold_seconds=0) as server:
        await server.model("slow", kind="openai", url=fake.at("answer"), review="always")
        token = await server.token()
        asking = [asyncio.ensure_future(call(server, token)) for _ in range(2)]
        assert len({(await each)[2] for each in asking}) == 2


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
def test_a_request_is_determined_by_its_temperature_or_its_seed(body: Any, is_so: bool) -> None:
    assert parse_sampling(json.dumps(body).encode()).is_repeatable is is_so


async def both_are_here(server: Live, fake: FakeUpstream, calls: int) -> bool | None:
    """Whether two callers wait, for so many upstream calls."""
    shared = sum(each._readers for each in server.services.runtime.inflight_calls._broadcasts.values())
    return (len(fake.requests) == calls and (calls == 2 or shared == 2)) or None


async def ended(server: Live, count: int) -> list[str] | None:
    found = await server.services.store.jobs.list(JobFilter())
    is_so = len(found) == count and all(job.is_terminal for job in found)
    return sorted(job.status for job in found) if is_so else None
