"""Limits over real processes: as many as there may be and no fewer, whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import sqlalchemy as sa

from fakes.tcp_proxy import TcpProxy
from fakes.upstream import FakeUpstream, fake_upstream
from signoff.core.model import Model
from signoff.server.bootstrap import migrate, open_services
from signoff.settings import Settings
from signoff.stores.schema import counters
from signoff.work.admin.people import create_token, create_user
from signoff.work.admin.registry import register_model
from support.ages import grow_older
from support.live_server import chat, until
from support.processes import clean_environment, free_port, served, signoff
from support.stores import opened

pytestmark = pytest.mark.anyio

CALLERS = 200


@dataclass(kw_only=True)
class World:
    """Two servers on one database, and everybody's token."""

    tmp_path: Path
    environment: dict[str, str]
    url: str
    token: str
    fake: FakeUpstream
    """The model `gated` waits here until the test wakes it."""
    redis: TcpProxy | None = None
    ports: list[int] = field(default_factory=lambda: [free_port(), free_port()])

    async def call(self, http: aiohttp.ClientSession, number: int, body: dict[str, Any]) -> tuple[int, float]:
        """One call: its status, and how long it is told to wait."""
        url = f"http://127.0.0.1:{self.ports[number % 2]}/v1/chat/completions"
        async with http.post(url, json=body, headers={"authorization": f"Bearer {self.token}"}) as response:
            await response.read()
            return response.status, float(response.headers.get("retry-after-ms", 0)) / 1000

    async def burst(self, body: dict[str, Any], count: int = CALLERS, refused: int = 0) -> list[tuple[int, float]]:
        """What so many callers at once are told. `gated` answers once so many have been told."""
        connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(connector=connector, timeout=patience) as http, asyncio.TaskGroup() as group:
            calls = [group.create_task(self.call(http, number, body)) for number in range(count)]
            if self.redis is not None:
                await self.redis.shut()
            if refused:
                await until(lambda: self._told(calls, refused))
                self.fake.wake.set()
        return [call.result() for call in calls]

    async def _told(self, calls: list[asyncio.Task[Any]], count: int) -> bool | None:
        return sum(call.done() for call in calls) >= count or None

    async def limit(self, **numbers: int) -> None:
        """Sets a limit for each user at one server, and waits until the other one knows it too."""
        options = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
        await asyncio.to_thread(signoff, self.environment, "limit", "set", "each", *options)
        async with aiohttp.ClientSession() as http:
            for port in self.ports:
                await until(lambda port=port: self._knows(http, port))
        async with opened(self.url) as store:
            await grow_older(store, 60)

    async def _knows(self, http: aiohttp.ClientSession, port: int) -> bool | None:
        url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"authorization": f"Bearer {self.token}"}
        async with http.post(url, json=chat("hi", max_tokens=1), headers=headers) as response:
            return "x-ratelimit-limit-requests" in response.headers or None


@pytest.fixture(params=["sqlite", "postgres", "postgres and redis"])
def settings_of_services(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the settings of what the servers use."""
    more = dict[str, str]()
    if "postgres" in request.param:
        more["SIGNOFF_DATABASE_URL"] = request.getfixturevalue("postgres_url")
    if "redis" in request.param:
        more |= {"SIGNOFF_REDIS_URL": request.getfixturevalue("redis_url")}
    return more


@pytest.fixture
async def world(settings_of_services: dict[str, str], tmp_path: Path, prefix: str) -> AsyncIterator[World]:
    """Yield two servers that run."""
    async with contextlib.AsyncExitStack() as stack:
        url, redis, more = settings_of_services.get("SIGNOFF_DATABASE_URL"), None, dict(settings_of_services)
        if "SIGNOFF_REDIS_URL" in more:
            redis = await stack.enter_async_context(TcpProxy(more["SIGNOFF_REDIS_URL"]))
            more |= {"SIGNOFF_REDIS_URL": redis.url, "SIGNOFF_REDIS_PREFIX": prefix}
        environment = clean_environment(tmp_path / "data", **more)
        fake = await stack.enter_async_context(fake_upstream())
        settings = Settings(data_dir=tmp_path / "data", database_url=url)
        await migrate(settings)
        async with open_services(settings) as services:
            await register_model(services, Model(name="gated", kind="openai", url=fake.at("answer-when-woken")))
            token = await create_token(services, await create_user(services, "a@example.com", "user"))
        url = url or f"sqlite:///{tmp_path}/data/signoff.db"
        world = World(tmp_path=tmp_path, environment=environment, url=url, token=token, fake=fake, redis=redis)
        for port in world.ports:
            await asyncio.to_thread(stack.enter_context, served(environment, tmp_path, port))
        yield world


async def test_of_200_callers_at_two_processes_as_many_are_admitted_as_may_and_no_fewer(world: World) -> None:
    await world.limit(requests=100, tokens=10_000)
    for _ in range(2):
        # when twice as many ask as may, at two processes
        told = await world.burst(chat("hi", max_tokens=20))
        # then as many are admitted as may, and the others know until when
        assert Counter(status for status, _ in told) == {200: 100, 429: 100}
        assert all(0 < seconds <= 60 for status, seconds in told if status == 429)
        # and after the minute all is free again
        async with opened(world.url) as store:
            await grow_older(store, 60)
    # when each reserves 500 tokens, and none is done before all have asked, then twenty fit
    told = await world.burst(chat("x" * 40, "gated", max_tokens=490), refused=180)
    assert Counter(status for status, _ in told) == {200: 20, 429: 180}
    # and what they did not use is free again: there is room for the 80 requests that are left
    told = await world.burst(chat("hi", max_tokens=20))
    assert Counter(status for status, _ in told) == {200: 80, 429: 120}


@pytest.mark.parametrize("settings_of_services", ["sqlite", "postgres"], indirect=True)
async def test_the_slots_of_a_killed_process_are_free_when_their_leases_have_run_out(world: World) -> None:
    await world.limit(requests=1000, parallel=3)
    headers, port = {"authorization": f"Bearer {world.token}"}, free_port()
    # given a third process, in which all slots are held
    with served(world.environment, world.tmp_path, port) as doomed:
        async with aiohttp.ClientSession() as http, opened(world.url) as store:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            body = chat("x", "echo/hang")
            hanging = [asyncio.ensure_future(http.post(url, json=body, headers=headers)) for _ in range(3)]
            first = await until(lambda: held(store, 3))
            # then they are held for longer than a lease
            await until(lambda: held(store, 3, since=max(first) + 1))
            assert (await world.call(http, 0, chat("hi")))[0] == 429
            # when it is killed, then others have them soon
            doomed.kill()
            await until(lambda: free(world, http))
            for call in hanging:
                call.cancel()


async def held(store: Any, count: int, since: int = 0) -> list[int] | None:
    """Until when the slots are held, once there are so many, and all are held until then."""
    query = sa.select(counters.c.counter)
    found = await store._database.read(lambda conn, _: list(conn.execute(query).scalars()))
    ends = [hold.until for counter in found for hold in counter.pending]
    return ends if len(ends) == count and min(ends) >= since else None


async def free(world: World, http: aiohttp.ClientSession) -> bool | None:
    return (await world.call(http, 0, chat("hi")))[0] == 200 or None


@pytest.mark.long
async def test_who_waits_as_long_as_all_are_told_finds_all_of_it_free(world: World) -> None:
    await world.limit(requests=100, tokens=10_000)
    told = await world.burst(chat("hi", max_tokens=20))
    assert Counter(status for status, _ in told) == {200: 100, 429: 100}
    await asyncio.sleep(60)
    told = await world.burst(chat("hi", max_tokens=20))
    assert Counter(status for status, _ in told) == {200: 100, 429: 100}
