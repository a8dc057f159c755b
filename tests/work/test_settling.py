"""The end of a job for later, while its lease, its reservation and its row are released one after another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fakes.counting import COUNTED, CountingModel
from signoff.core.filters import JobFilter
from signoff.core.limits import Limit
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio

JOBS = 10


@pytest.fixture
async def counting_model() -> AsyncIterator[CountingModel]:
    """Yield a model server that counts its tokens."""
    async with CountingModel() as counting_model:
        yield counting_model


async def have_all_ended(server: Live, count: int) -> bool | None:
    """Return True if there are `count` jobs and all have ended; else None."""
    jobs = await server.services.store.jobs.list(JobFilter())
    return (len(jobs) == count and all(job.is_terminal for job in jobs)) or None


async def has_idle_workers(server: Live) -> bool | None:
    """Return True if no task of this process performs a job; else None."""
    return not any("perform" in repr(task) for task in asyncio.all_tasks()) or None


async def submit_and_wait(server: Live, text: str, count: int) -> str:
    """Submit `count` jobs, wait for the ends of all, and return an admin's token."""
    admin = await server.token("admin")
    body = {"target": "counting", "body": chat(text, "counting")}
    for _ in range(count):
        assert (await server.ask("POST", "/api/jobs", admin, json=body))[0] == 202
    await until(lambda: have_all_ended(server, count))
    await until(lambda: has_idle_workers(server))
    return admin


async def test_a_job_under_a_limit_is_counted_once(tmp_path: Path, counting_model: CountingModel) -> None:
    async with live(tmp_path) as server:
        await server.model("counting", kind="openai", url=counting_model.url)
        await server.services.store.limits.put_limit(Limit(scope="each", parallel=2, tokens_per_day=10_000))
        server.services.caches.limits.invalidate()

        admin = await submit_and_wait(server, "whole 3", JOBS)

        _, report = await server.ask("GET", "/api/usage?by=status", admin)
        assert [row["status"] for row in report["data"]] == ["success"]
        assert {name: report["total"][name] for name in COUNTED} == {
            name: counting_model.tokens[name] for name in COUNTED
        }


async def test_the_end_of_a_job_renews_no_lease(tmp_path: Path, counting_model: CountingModel) -> None:
    async with live(tmp_path, lease_seconds=600, heartbeat_seconds=200) as server:
        await server.model("counting", kind="openai", url=counting_model.url)
        renew, renewed = server.services.store.jobs.renew, list[str]()

        async def record_and_renew(leases: Mapping[str, str], lease_seconds: float) -> Any:
            renewed.extend(leases)
            return await renew(leases, lease_seconds)

        server.services.store.jobs.renew = record_and_renew  # type: ignore[method-assign]

        await submit_and_wait(server, "whole 1", JOBS)

        assert renewed == []


async def test_the_end_of_a_lease_does_not_affect_the_next_lease_of_the_same_job(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        leases, lost = server.services.runtime.leases, list[str]()

        with leases.holding("job", "one", lambda: lost.append("one")):
            leases.drop("job")  # as after the job is settled
            leases.add("job", "two", lambda: lost.append("two"))
        await leases.renew()

        assert lost == ["two"]
