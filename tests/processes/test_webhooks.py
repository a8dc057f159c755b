"""Webhooks of real processes: killed between a message and its settling, and many senders on one database."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fakes.http_server import RecordedRequest
from fakes.webhook_receiver import SECRET, WebhookReceiver, message_id
from support.live_server import chat, until
from support.processes import ask, clean_environment, first_token, free_port, served, signoff, start_worker

pytestmark = pytest.mark.anyio

JOBS = 40


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return clean_environment(tmp_path / "data", SIGNOFF_WEBHOOK_ALLOW='["127.0.0.0/8"]', SIGNOFF_WEBHOOK_SECRET=SECRET)


def submit(port: int, token: str, url: str) -> str:
    """The id of a job whose end is told to `url`."""
    asked = {"body": chat("hello"), "target": "echo", "deliver": {"url": url}}
    return ask(port, "/api/jobs", token, asked)["job_id"]


def settled(port: int, token: str, job_id: str) -> bool | None:
    """Whether the job's delivery is done."""
    told = ask(port, f"/api/jobs/{job_id}/deliveries", token)["data"]
    return bool(told and told[0]["state"] == "done") or None


async def test_a_server_that_is_killed_after_the_post_sends_it_again_under_its_id(
    environment: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    async with WebhookReceiver() as receiver:
        # given a server that is killed when its message is here, before it can write that down
        with served(environment, tmp_path, port) as server:

            async def kill(_: RecordedRequest) -> None:
                server.kill()
                server.wait()

            receiver.answers = [kill]
            token = first_token(tmp_path)
            job_id = await asyncio.to_thread(submit, port, token, receiver.url)
            [first] = list(await receiver.received())
            await asyncio.to_thread(server.wait)
        # when another one is started, and the lease of the first has run out
        with contextlib.closing(sqlite3.connect(tmp_path / "data" / "signoff.db", isolation_level=None)) as conn:
            assert conn.execute("UPDATE deliveries SET lease_until = 1 WHERE state = 'due'").rowcount == 1
        with served(environment, tmp_path, port):
            # then the message comes again, the same
            second = (await receiver.received(2))[1]
            assert (message_id(second), second.body) == (message_id(first), first.body)
            await until(lambda: asyncio.to_thread(settled, port, token, job_id))


async def test_of_many_senders_on_one_database_one_sends_each_delivery(
    environment: dict[str, str], tmp_path: Path, postgres_url: str
) -> None:
    port, processes = free_port(), list[Any]()
    environment |= {"SIGNOFF_DATABASE_URL": postgres_url}
    async with WebhookReceiver() as receiver:
        await asyncio.to_thread(signoff, environment, "migrate")
        with served(environment, tmp_path, port):
            try:
                processes += [start_worker(environment, stderr=subprocess.DEVNULL) for _ in range(2)]
                token = first_token(tmp_path)
                jobs = [await asyncio.to_thread(submit, port, token, receiver.url) for _ in range(JOBS)]
                for job_id in jobs:
                    await until(lambda job_id=job_id: asyncio.to_thread(settled, port, token, job_id))
            finally:
                for process in processes:
                    process.terminate()
                    process.wait()
        assert Counter(message_id(got) for got in receiver.requests) == Counter(f"msg_{job_id}" for job_id in jobs)
