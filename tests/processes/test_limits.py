"""Limits across real processes: exactly as many requests as allowed are admitted, even after crashes."""

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
from signoff.stores.limits_schema import counters
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
    """Two servers on one database, and the token of a user."""

    tmp_path: Path
    environment: dict[str, str]
    url: str
    token: str
    fake: FakeUpstream
    """The upstream of the model `gated`, which answers once the test sets its `wake`."""
    redis: TcpProxy | None = None
    ports: list[int] = field(default_factory=lambda: [free_port(), free_port()])

    async def call(self, http: aiohttp.ClientSession, number: int, body: dict[str, Any]) -> tuple[int, float]:
        """Send a request; return its status and its `retry-after-ms` in seconds."""
        url = f"http://127.0.0.1:{self.ports[number % 2]}/v1/chat/completions"
        async with http.post(url, json=body, headers={"authorization": f"Bearer {self.token}"}) as response:
            await response.read()
            return response.status, float(response.headers.get("retry-after-ms", 0)) / 1000

    async def burst(self, body: dict[str, Any], count: int = CALLERS, refused: int = 0) -> list[tuple[int, float]]:
        """Return the results of `count` calls at once. With `refused`, `gated` answers after that many have ended."""
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http, asyncio.TaskGroup() as group:
            calls = [group.create_task(self.call(http, number, body)) for number in range(count)]
            if self.redis is not None:
                await self.redis.shut()
            if refused:
                await until(lambda: self._have_ended(calls, refused))
                self.fake.wake.set()
        return [call.result() for call in calls]

    async def _have_ended(self, calls: list[asyncio.Task[Any]], count: int) -> bool | None:
        """Return True if at least `count` calls have ended; else None."""
        return sum(call.done() for call in calls) >= count or None

    async def limit(self, **numbers: int) -> None:
        """Set a limit for each user, and wait until both servers apply it."""
        options = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
        await asyncio.to_thread(signoff, self.environment, "limit", "set", "each", *options)
        async with aiohttp.ClientSession() as http:
            for port in self.ports:
                await until(lambda port=port: self._applies_limit(http, port))
        async with opened(self.url) as store:
            await grow_older(store, 60)

    async def _applies_limit(self, http: aiohttp.ClientSession, port: int) -> bool | None:
        """Return True if the server at `port` applies a limit; else None."""
        url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"authorization": f"Bearer {self.token}"}
        async with http.post(url, json=chat("hi", max_tokens=1), headers=headers) as response:
            return "x-ratelimit-limit-requests" in response.headers or None


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.long), "postgres and redis"])
def settings_of_services(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the settings for the services that the servers use."""
    more = dict[str, str]()
    if "postgres" in request.param:
        more["SIGNOFF_DATABASE_URL"] = request.getfixturevalue("postgres_url")
    if "redis" in request.param:
        more |= {"SIGNOFF_REDIS_URL": request.getfixturevalue("redis_url")}
    return more


@pytest.fixture
async def world(settings_of_services: dict[str, str], tmp_path: Path, prefix: str) -> AsyncIterator[World]:
    """Yield two running servers."""
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


async def test_of_200_callers_at_two_processes_exactly_as_many_as_allowed_are_admitted(world: World) -> None:
    await world.limit(requests=100, tokens=10_000)
    for _ in range(2):
        # when twice as many requests as allowed arrive at two processes
        results = await world.burst(chat("hi", max_tokens=20))
        # then exactly as many as allowed are admitted, and the others get the time to retry
        assert Counter(status for status, _ in results) == {200: 100, 429: 100}
        assert all(0 < seconds <= 60 for status, seconds in results if status == 429)
        # and after a minute the limit is available again
        async with opened(world.url) as store:
            await grow_older(store, 60)
    # when each request reserves 500 tokens, and none ends before all have arrived, then twenty are admitted
    results = await world.burst(chat("x" * 40, "gated", max_tokens=490), refused=180)
    assert Counter(status for status, _ in results) == {200: 20, 429: 180}
    # and their unused tokens are released: the remaining 80 requests are admitted
    results = await world.burst(chat("hi", max_tokens=20))
    assert Counter(status for status, _ in results) == {200: 80, 429: 120}


@pytest.mark.parametrize(
    "settings_of_services", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)], indirect=True
)
async def test_the_slots_of_a_killed_process_are_released_when_their_leases_expire(world: World) -> None:
    await world.limit(requests=1000, parallel=3)
    headers, port = {"authorization": f"Bearer {world.token}"}, free_port()
    # given a third process that holds all slots
    with served(world.environment, world.tmp_path, port) as process:
        async with aiohttp.ClientSession() as http, opened(world.url) as store:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            body = chat("x", "echo/hang")
            tasks = [asyncio.ensure_future(http.post(url, json=body, headers=headers)) for _ in range(3)]
            first = await until(lambda: hold_ends(store, 3))
            # then the holds are extended beyond their first lease
            await until(lambda: hold_ends(store, 3, since=max(first) + 1))
            assert (await world.call(http, 0, chat("hi")))[0] == 429
            # when it is killed, then the slots are soon available to others
            process.kill()
            await until(lambda: is_admitted(world, http))
            for task in tasks:
                task.cancel()


async def hold_ends(store: Any, count: int, since: int = 0) -> list[int] | None:
    """Return the ends of the holds once there are `count` of them, all at `since` or later; else None."""
    query = sa.select(counters.c.counter)
    rows = await store._database.read(lambda conn, _: list(conn.execute(query).scalars()))
    ends = [hold.until for counter in rows for hold in counter.pending]
    return ends if len(ends) == count and min(ends) >= since else None


async def is_admitted(world: World, http: aiohttp.ClientSession) -> bool | None:
    """Return True if a request is admitted; else None."""
    return (await world.call(http, 0, chat("hi")))[0] == 200 or None


@pytest.mark.long
async def test_after_the_time_to_retry_the_whole_limit_is_available(world: World) -> None:
    await world.limit(requests=100, tokens=10_000)
    results = await world.burst(chat("hi", max_tokens=20))
    assert Counter(status for status, _ in results) == {200: 100, 429: 100}
    await asyncio.sleep(60)
    results = await world.burst(chat("hi", max_tokens=20))
    assert Counter(status for status, _ in results) == {200: 100, 429: 100}
