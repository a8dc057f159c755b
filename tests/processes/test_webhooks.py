"""Webhooks of real processes: killed before a delivery is settled, and many senders on one database."""

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
from support.processes import ask, first_token, free_port, migrated_environment, served, signoff, start_worker

pytestmark = pytest.mark.anyio

JOBS = 40


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of the processes, which may send webhooks to this machine."""
    return migrated_environment(
        tmp_path / "data", SIGNOFF_WEBHOOK_ALLOW='["127.0.0.0/8"]', SIGNOFF_WEBHOOK_SECRET=SECRET
    )


def submit(port: int, token: str, url: str) -> str:
    """Submit a job whose end is sent to `url`; return its id."""
    request = {"body": chat("hello"), "target": "echo", "deliver": {"url": url}}
    return ask(port, "/api/jobs", token, request)["job_id"]


def is_delivered(port: int, token: str, job_id: str) -> bool | None:
    """Return True if the delivery of the job is done; else None."""
    rows = ask(port, f"/api/jobs/{job_id}/deliveries", token)["data"]
    return bool(rows and rows[0]["state"] == "done") or None


async def test_a_webhook_of_a_server_killed_after_the_post_is_repeated_under_its_id(
    environment: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    async with WebhookReceiver() as receiver:
        # given a server that is killed after its webhook has arrived, before it can record that
        with served(environment, tmp_path, port) as server:

            async def kill(_: RecordedRequest) -> None:
                server.kill()
                server.wait()

            receiver.answers = [kill]
            token = first_token(tmp_path)
            job_id = await asyncio.to_thread(submit, port, token, receiver.url)
            [first] = list(await receiver.received())
            await asyncio.to_thread(server.wait)
        # when another server is started, and the lease of the first has expired
        with contextlib.closing(sqlite3.connect(tmp_path / "data" / "signoff.db", isolation_level=None)) as conn:
            assert conn.execute("UPDATE deliveries SET lease_until = 1 WHERE state = 'due'").rowcount == 1
        with served(environment, tmp_path, port):
            # then the same message arrives again
            second = (await receiver.received(2))[1]
            assert (message_id(second), second.body) == (message_id(first), first.body)
            await until(lambda: asyncio.to_thread(is_delivered, port, token, job_id))


async def test_each_delivery_is_sent_by_only_one_of_many_processes(
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
                    await until(lambda job_id=job_id: asyncio.to_thread(is_delivered, port, token, job_id))
            finally:
                for process in processes:
                    process.terminate()
                    process.wait()
        assert Counter(message_id(request) for request in receiver.requests) == Counter(
            f"msg_{job_id}" for job_id in jobs
        )
