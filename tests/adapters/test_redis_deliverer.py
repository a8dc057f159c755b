"""Results in Redis: under the prefix, with a time to live, and announced, even if Redis fails or loses its data."""

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
    """Yield a client that reads results from Redis."""
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def wire(redis_url: str) -> AsyncIterator[TcpProxy]:
    """Yield a proxy to Redis that can cut its connections."""
    async with TcpProxy(redis_url) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def mirrored(tmp_path: Path, url: str, prefix: str, **settings: Any) -> AsyncIterator[tuple[Live, str]]:
    """Yield a server that writes results to Redis, and a token of an admin."""
    async with live(tmp_path, redis_url=url, redis_prefix=prefix, **settings) as server:
        yield server, await server.token("admin")


async def submit(server: Live, token: str, text: str = "hello", target: str = "echo", **more: Any) -> str:
    status, job = await server.ask(
        "POST", "/api/jobs", token, json={"body": chat(text, target), "target": target} | more
    )
    assert status == 202, job
    return job["job_id"]


async def result(redis: Redis, key: str) -> dict[str, Any]:
    """Wait for the value of `key`, and return it."""

    async def read_value() -> dict[str, Any] | None:
        value = await redis.get(key)
        return None if value is None else json.loads(value)

    return await until(read_value)


async def test_a_result_is_written_under_the_prefix_with_a_ttl_and_announced(
    tmp_path: Path, redis: Redis, redis_url: str, prefix: str
) -> None:
    async with (
        mirrored(tmp_path, redis_url, prefix, redis_ttl_seconds=500) as (server, token),
        redis.pubsub() as subscription,
    ):
        await subscription.psubscribe(f"{prefix}:*")
        job_id = await submit(server, token)
        key = f"{prefix}:{job_id}"

        value = await result(redis, key)

        assert value == {"job_id": job_id, "job_status": "completed", "content": "hello", "error": None}
        assert 400 < await redis.ttl(key) <= 500
        message = await until(lambda: subscription.get_message(ignore_subscribe_messages=True))
        assert (message["channel"].decode(), json.loads(message["data"])) == (key, value)


async def test_the_result_of_a_failed_job_has_its_error(
    tmp_path: Path, redis: Redis, redis_url: str, prefix: str
) -> None:
    async with mirrored(tmp_path, redis_url, prefix) as (server, token):
        value = await result(redis, f"{prefix}:{await submit(server, token, target='echo/status=400')}")
        assert (value["job_status"], value["content"]) == ("error", None)
        assert value["error"]["status"] == 400


async def test_a_held_answer_is_written_to_redis_only_after_its_verdict(
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
        value = await result(redis, f"{prefix}:{rejected}")
        assert (value["job_status"], value["content"]) == ("error", None)
        assert await redis.get(f"{prefix}:{cancelled}") is None


async def test_no_user_can_replace_the_result_of_another(
    tmp_path: Path, redis: Redis, redis_url: str, prefix: str
) -> None:
    async with mirrored(tmp_path, redis_url, prefix) as (server, token):
        other = await server.token()
        body = {"job_id": "order-1001", "content": "mine", "meta": {"model": "echo"}}
        assert (await server.ask("POST", "/generate?wait=0", token, json=body))[0] == 202
        assert (await result(redis, f"{prefix}:order-1001"))["content"] == "mine"
        status, refusal = await server.ask("POST", "/generate?wait=0", other, json=body | {"content": "forged"})
        assert (status, refusal["code"]) == (409, "job_id_taken")
        # neither with the id of a job that the server has named
        taken = await submit(server, token)
        await result(redis, f"{prefix}:{taken}")
        for job_id in (taken, taken.upper()):
            status, refusal = await server.ask("POST", "/generate?wait=0", other, json=body | {"job_id": job_id})
            assert (status, refusal["code"]) == (400, "bad_request")
        assert (await result(redis, f"{prefix}:order-1001"))["content"] == "mine"
        # while other ids of the caller, and UUIDs of another version, are as before
        for job_id in ("order-1002", "8f14e45f-ceea-467f-a9f3-000000000000"):
            status, _ = await server.ask("POST", "/generate?wait=0", other, json=body | {"job_id": job_id})
            assert status == 202


async def test_waiting_calls_write_nothing_to_redis(tmp_path: Path, redis: Redis, redis_url: str, prefix: str) -> None:
    async with mirrored(tmp_path, redis_url, prefix) as (server, token):
        assert (await server.ask("POST", "/v1/chat/completions", token, json=chat("hello")))[0] == 200
        await result(redis, f"{prefix}:{await submit(server, token)}")
        assert len(await redis.keys(f"{prefix}:*")) == 1


async def test_a_retried_job_has_a_result_of_its_own(tmp_path: Path, redis: Redis, redis_url: str, prefix: str) -> None:
    async with mirrored(tmp_path, redis_url, prefix) as (server, token):
        first = await submit(server, token)
        await result(redis, f"{prefix}:{first}")
        _, retried = await server.ask("POST", f"/api/jobs/{first}/retry", token)
        assert (await result(redis, f"{prefix}:{retried['job_id']}"))["job_id"] == retried["job_id"]


async def test_while_redis_is_down_jobs_go_on_and_their_results_follow_when_it_is_back(
    tmp_path: Path, redis: Redis, wire: TcpProxy, prefix: str
) -> None:
    async with mirrored(tmp_path, wire.url, prefix) as (server, token):
        await result(redis, f"{prefix}:{await submit(server, token)}")
        # when Redis is down, and there are more results than are sent at a time
        await wire.shut()
        ids = [await submit(server, token, str(number)) for number in range(100)]
        for job_id in ids:
            await server.job_when(token, job_id, lambda job: job["status"] == "success")
        assert (await server.ask("GET", "/health/ready"))[0] == 200
        # then each result is written soon after Redis is back
        await wire.open()
        for number, job_id in enumerate(ids):
            assert (await result(redis, f"{prefix}:{job_id}"))["content"] == str(number)


async def test_an_emptied_redis_gets_the_next_result_and_lost_ones_on_request(
    tmp_path: Path, redis: Redis, redis_url: str, prefix: str
) -> None:
    async with mirrored(tmp_path, redis_url, prefix) as (server, token):
        first = await submit(server, token)
        await result(redis, f"{prefix}:{first}")
        await redis.delete(f"{prefix}:{first}")
        await result(redis, f"{prefix}:{await submit(server, token)}")
        # and the lost result is written again on request
        _, deliveries = await server.ask("GET", f"/api/jobs/{first}/deliveries", token)
        assert [delivery["kind"] for delivery in deliveries["data"]] == ["redis"]
        assert (await server.ask("POST", f"/api/deliveries/{deliveries['data'][0]['id']}/resend", token))[0] == 202
        await result(redis, f"{prefix}:{first}")


async def test_an_unreachable_redis_does_not_delay_a_shutdown(tmp_path: Path, wire: TcpProxy, prefix: str) -> None:
    await wire.shut()
    context = mirrored(tmp_path, wire.url, prefix, drain_seconds=60)
    async with asyncio.timeout(ANSWER_SECONDS), context as (server, token):
        job_id = await submit(server, token)
        await server.job_when(token, job_id, lambda job: job["status"] == "success")
    # the server has stopped in time, and its delivery is due again
    async with mirrored(tmp_path, wire.url, prefix) as (server, token):
        _, deliveries = await server.ask("GET", f"/api/jobs/{job_id}/deliveries", token)
        assert (deliveries["data"][0]["state"], deliveries["data"][0]["error"]) == ("due", None)


async def test_a_delivery_waits_for_a_silent_redis_until_it_is_cancelled(wire: TcpProxy, prefix: str) -> None:
    deliverer = RedisDeliverer(wire.url, ttl_seconds=60, random_float=random.Random(1).random)
    wire.block()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await deliverer.send(OutgoingMessage(address=f"{prefix}:1", body=b"{}"))
    wire.unblock()
    assert await deliverer.send(OutgoingMessage(address=f"{prefix}:1", body=b"{}")) is None
    await deliverer.close()


async def test_the_doctor_reports_what_is_wrong_with_redis(redis_url: str) -> None:
    assert await check_redis(Settings()) == "none: results are stored in the database only"
    assert (await check_redis(Settings(redis_url=redis_url))).startswith("Redis ")
    with pytest.raises(ConnectionError, match="cannot be used"):
        await check_redis(Settings(redis_url="redis://:secret@127.0.0.1:9/0"))


async def test_results_are_withdrawn_with_their_user(tmp_path: Path, redis_url: str, redis: Redis, prefix: str) -> None:
    async with mirrored(tmp_path, redis_url, prefix) as (server, admin):
        ann, bob = await server.token("user", "ann@example.com"), await server.token("user", "bob@example.com")
        keys = [f"{prefix}:{await submit(server, token)}" for token in (ann, bob)]
        for key in keys:
            await result(redis, key)
        user = await server.services.store.people.user("ann@example.com")
        assert user is not None
        assert (await server.ask("DELETE", f"/api/users/{user.id}?erase=true", admin))[0] == 202

        async def is_withdrawn() -> bool | None:
            return not await redis.exists(keys[0]) or None

        await until(is_withdrawn)
        assert await redis.exists(keys[1]) == 1
