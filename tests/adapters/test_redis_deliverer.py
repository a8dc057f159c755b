"""Results in Redis: under the prefix, for a while, announced; Redis may go away, and come back with nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fakes.tcp_proxy import TcpProxy
from signoff.core.delivery import OutgoingMessage
from signoff.deliverers.redis import RedisDeliverer
from signoff.server.bootstrap import check_redis
from signoff.settings import Settings
from support.live_server import ANSWER_SECONDS, Live, chat, live, until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A reader's own way to Redis."""
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def wire(redis_url: str) -> AsyncIterator[TcpProxy]:
    """A way to Redis that can be cut."""
    async with TcpProxy(redis_url) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def mirrored(tmp_path: Path, url: str, prefix: str, **settings: Any) -> AsyncIterator[tuple[Live, str]]:
    """A server that writes results to Redis, and a token."""
    async with live(tmp_path, redis_url=url, redis_prefix=prefix, **settings) as server:
        yield server, await server.token("admin")


async def submit(server: Live, token: str, text: str = "hello", target: str = "echo", **more: Any) -> str:
    status, job = await server.ask("POST", "/api/jobs", token, json={"body": chat(text), "target": target} | more)
    assert status == 202, job
    return job["job_id"]


async def result(redis: Redis, key: str) -> dict[str, Any]:
    """What stands under `key`, as soon as it is there."""

    async def look() -> dict[str, Any] | None:
        found = await redis.get(key)
        return None if found is None else json.loads(found)

    return await until(look)


async def test_a_result_is_written_under_the_prefix_for_a_while_and_announced(
    tmp_path: Path, redis: Redis, redis_url: str, prefix: str
) -> None:
    async with mirrored(tmp_path, redis_url, prefix, redis_ttl_seconds=500) as (server, token), redis.pubsub() as heard:
        await heard.psubscribe(f"{prefix}:*")
        job_id = await submit(server, token)
        key = f"{prefix}:{job_id}"

        found = await result(redis, key)

        assert found == {"job_id": job_id, "job_status": "completed", "content": "hello", "error": None}
        assert 400 < await redis.ttl(key) <= 500
        said = await until(lambda: heard.get_message(ignore_subscribe_messages=True))
        assert (said["channel"].decode(), json.loads(said["data"])) == (key, found)


async def test_a_job_that_fails_says_why(tmp_path: Path, redis: Redis, redis_url: str, prefix: str) -> None:
    async with mirrored(tmp_path, redis_url, prefix) as (server, token):
        found = await result(redis, f"{prefix}:{await submit(server, token, target='echo/status=400')}")
        assert (found["job_status"], found["content"]) == ("error", None)
        assert found["error"]["status"] == 400


async def test_what_is_held_is_in_redis_from_its_verdict_on_and_no_sooner(
    tmp_path: Path, redis: Redis, redis_url: str, prefix: str
) -> None:
    async with mirrored(tmp_path, redis_url, prefix) as (server, token):
        await server.model("held", review="always")
        ids = [await submit(server, token, text, "held") for text in ("good", "bad", "unwanted")]
        for job_id in ids:
            await server.job_when(token, job_id, lambda job: job["status"] == "human")
        assert await redis.keys(f"{prefix}:*") == []
        approved, rejected, cancelled = ids

        await server.ask("POST", f"/api/jobs/{cancelled}/cancel", token)
        await server.ask("POST", "/reviewJob", token, json={"id": rejected, "status": "fail", "reason": "No."})
        await server.ask("POST", "/reviewJob", token, json={"id": approved, "status": "success"})

        assert (await result(redis, f"{prefix}:{approved}"))["content"] == "good"
        refused = await result(redis, f"{prefix}:{rejected}")
        assert (refused["job_status"], refused["content"]) == ("error", None)
        assert await redis.get(f"{prefix}:{cancelled}") is None


async def test_callers_who_waited_leave_nothing_in_redis(
    tmp_path: Path, redis: Redis, redis_url: str, prefix: str
) -> None:
    async with mirrored(tmp_path, redis_url, prefix) as (server, token):
        assert (await server.ask("POST", "/v1/chat/completions", token, json=chat("hello")))[0] == 200
        await result(redis, f"{prefix}:{await submit(server, token)}")
        assert len(await redis.keys(f"{prefix}:*")) == 1


async def test_a_job_that_is_asked_again_has_a_result_of_its_own(
    tmp_path: Path, redis: Redis, redis_url: str, prefix: str
) -> None:
    async with mirrored(tmp_path, redis_url, prefix) as (server, token):
        first = await submit(server, token)
        await result(redis, f"{prefix}:{first}")
        _, again = await server.ask("POST", f"/api/jobs/{first}/retry", token)
        assert (await result(redis, f"{prefix}:{again['job_id']}"))["job_id"] == again["job_id"]


async def test_while_redis_is_away_jobs_go_on_and_their_results_come_when_it_is_back(
    tmp_path: Path, redis: Redis, wire: TcpProxy, prefix: str
) -> None:
    async with mirrored(tmp_path, wire.url, prefix) as (server, token):
        await result(redis, f"{prefix}:{await submit(server, token)}")
        # when it is gone, and more results come than are sent at a time
        await wire.shut()
        ids = [await submit(server, token, str(number)) for number in range(100)]
        for job_id in ids:
            await server.job_when(token, job_id, lambda job: job["status"] == "success")
        assert (await server.ask("GET", "/health/ready"))[0] == 200
        # then each is there soon after it has come back
        await wire.open()
        for number, job_id in enumerate(ids):
            assert (await result(redis, f"{prefix}:{job_id}"))["content"] == str(number)


async def test_a_redis_that_was_emptied_gets_the_next_result(
    tmp_path: Path, redis: Redis, redis_url: str, prefix: str
) -> None:
    async with mirrored(tmp_path, redis_url, prefix) as (server, token):
        first = await submit(server, token)
        await result(redis, f"{prefix}:{first}")
        await redis.delete(f"{prefix}:{first}")
        await result(redis, f"{prefix}:{await submit(server, token)}")
        # and the one that was lost is written again when somebody asks for it
        _, told = await server.ask("GET", f"/api/jobs/{first}/deliveries", token)
        assert [one["kind"] for one in told["data"]] == ["redis"]
        assert (await server.ask("POST", f"/api/deliveries/{told['data'][0]['id']}/resend", token))[0] == 202
        await result(redis, f"{prefix}:{first}")


async def test_a_redis_that_is_away_holds_up_no_webhook_and_no_end(tmp_path: Path, wire: TcpProxy, prefix: str) -> None:
    await wire.shut()
    patient = mirrored(tmp_path, wire.url, prefix, drain_seconds=60)
    async with asyncio.timeout(ANSWER_SECONDS), patient as (server, token):
        job_id = await submit(server, token)
        await server.job_when(token, job_id, lambda job: job["status"] == "success")
    # the server has ended, in time, and has given the delivery back
    async with mirrored(tmp_path, wire.url, prefix) as (server, token):
        _, told = await server.ask("GET", f"/api/jobs/{job_id}/deliveries", token)
        assert (told["data"][0]["state"], told["data"][0]["error"]) == ("due", None)


async def test_a_silent_redis_is_waited_for_until_the_courier_is_called_off(wire: TcpProxy, prefix: str) -> None:
    deliverer = RedisDeliverer(wire.url, ttl_seconds=60, random_float=random.Random(1).random)
    wire.block()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await deliverer.send(OutgoingMessage(address=f"{prefix}:1", body=b"{}"))
    wire.unblock()
    assert await deliverer.send(OutgoingMessage(address=f"{prefix}:1", body=b"{}")) is None
    await deliverer.close()


async def test_the_doctor_says_what_is_wrong_with_redis(redis_url: str) -> None:
    assert await check_redis(Settings()) == "none: results are stored in the database only"
    assert (await check_redis(Settings(redis_url=redis_url))).startswith("Redis ")
    with pytest.raises(ConnectionError, match="not usable"):
        await check_redis(Settings(redis_url="redis://:secret@127.0.0.1:9/0"))
