"""Servers and workers that start before RabbitMQ and Redis: they answer, and use both as soon as they are there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from fakes.tcp_proxy import TcpProxy
from support.processes import ask, clean_environment, first_token, free_port, served, until, worked

pytestmark = pytest.mark.anyio


async def test_processes_that_start_without_rabbitmq_and_redis_use_them_once_they_are_there(
    tmp_path: Path, rabbitmq_url: str, redis_url: str, prefix: str
) -> None:
    loop = asyncio.get_running_loop()
    async with TcpProxy(rabbitmq_url) as rabbitmq, TcpProxy(redis_url) as redis:
        await rabbitmq.shut()
        await redis.shut()

        def open_both() -> None:
            for proxy in (rabbitmq, redis):
                asyncio.run_coroutine_threadsafe(proxy.open(), loop).result()

        environment = clean_environment(
            tmp_path / "data",
            SIGNOFF_AMQP_URL=rabbitmq.url,
            SIGNOFF_QUEUE_NAME=prefix,
            SIGNOFF_REDIS_URL=redis.url,
            SIGNOFF_REDIS_PREFIX=prefix,
        )
        await asyncio.to_thread(_work_before_and_after, environment, tmp_path, redis_url, prefix, open_both)
    log = (tmp_path / "err.txt").read_text()
    assert "rabbitmq_disconnected" in log
    assert "Traceback" not in log


def _work_before_and_after(
    environment: dict[str, str], tmp_path: Path, redis_url: str, prefix: str, open_both: Callable[[], None]
) -> None:
    port = free_port()
    with served(environment, tmp_path, port, "--no-work"), worked(environment):
        token = first_token(tmp_path)

        def is_ready(*, with_both: bool) -> dict[str, Any] | None:
            readiness = ask(port, "/health/ready", token)
            return readiness if (readiness["broker"], readiness["redis"]) == (with_both, with_both) else None

        def generate(job_id: str) -> None:
            request = {"job_id": job_id, "content": job_id, "meta": {"model": "echo"}}
            assert ask(port, "/generate?wait=30", token, request)["content"] == job_id

        assert until(lambda: is_ready(with_both=False)) == {"store": True, "broker": False, "redis": False}
        generate("before")
        open_both()
        until(lambda: is_ready(with_both=True))
        generate("after")
        with Redis.from_url(redis_url) as redis:
            for job_id in ("before", "after"):
                result = until(lambda job_id=job_id: redis.get(f"{prefix}:{job_id}"))
                assert json.loads(result)["content"] == job_id
