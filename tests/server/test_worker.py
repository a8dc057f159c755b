"""The worker's loop: it never sleeps while there are jobs that it could perform."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from signoff.brokers.local import LocalBroker
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.model import Model
from signoff.server.bootstrap import run_services
from signoff.server.worker import Worker
from signoff.settings import Settings
from support.stores import a_job, together

pytestmark = pytest.mark.anyio

JOBS = 300


async def test_a_backlog_is_performed_without_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given many due jobs of one model, which may take three of four slots
    async with run_services(Settings(data_dir=tmp_path), work=False) as services:
        jobs = services.store.jobs
        await together(jobs.insert(a_job(lane="later", model="echo", target="echo"), actor="ann") for _ in range(JOBS))
        # when a worker performs them
        pauses, poll = list[int](), LocalBroker.poll

        async def counting_poll(broker: LocalBroker, seconds: float) -> bool:
            was_woken = await poll(broker, seconds)
            if not was_woken:
                pauses.append(await jobs.count(JobFilter(status="bot"), at_most=10_000))
            return was_woken

        monkeypatch.setattr(LocalBroker, "poll", counting_poll)
        monkeypatch.setattr("signoff.server.worker.POLL_SECONDS", 30)  # a busy machine may take a second
        worker = asyncio.ensure_future(Worker(services, concurrency=4, drain_seconds=1).run())
        while await jobs.count(JobFilter(status="bot"), at_most=10_000):
            await asyncio.sleep(0.01)
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
        # then it waited only when there were none left
        assert [left for left in pauses if left] == []
        assert await jobs.count(JobFilter(status="success"), at_most=10_000) == JOBS


async def test_the_other_models_of_a_backlog_are_not_looked_for_after_each_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given many due jobs of one model, which may take three of four slots
    async with run_services(Settings(data_dir=tmp_path), work=False) as services:
        jobs = services.store.jobs
        await together(jobs.insert(a_job(lane="later", model="echo", target="echo"), actor="ann") for _ in range(JOBS))
        claim, fruitless = jobs.claim, list[int]()

        async def counting_claim(**options: object) -> list[Job]:
            claimed = await claim(**options)
            if not claimed and (left := await jobs.count(JobFilter(status="bot"), at_most=10_000)):
                fruitless.append(left)
            return claimed

        monkeypatch.setattr(jobs, "claim", counting_claim)
        monkeypatch.setattr("signoff.server.worker.POLL_SECONDS", 30)
        worker = asyncio.ensure_future(Worker(services, concurrency=4, drain_seconds=1).run())
        # when a worker performs them
        while await jobs.count(JobFilter(status="bot"), at_most=10_000):
            await asyncio.sleep(0.01)
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
        # then a claim for the fourth slot, which finds nothing, is not repeated
        assert len(fruitless) <= JOBS / 10


async def test_jobs_of_a_user_that_hang_leave_a_slot_to_others(tmp_path: Path) -> None:
    # given a user with more hanging jobs than there are slots, on more models than there are shares
    async with run_services(Settings(data_dir=tmp_path, echo_faults=True), work=False) as services:
        store = services.store
        for name in ("one", "two", "three", "four"):
            await store.catalog.put_model(Model(name=name, kind="echo"))
        hogs = [a_job(model=name, target=f"{name}/hang", user_id=1) for name in ("one", "two", "three", "four") * 4]
        await together(store.jobs.insert(job, actor="hog") for job in hogs)
        worker = asyncio.ensure_future(Worker(services, concurrency=4, drain_seconds=0).run())
        filters = JobFilter(user_id=1, status="bot")
        while len([job for job in await store.jobs.list(filters) if job.lease]) < 3:
            await asyncio.sleep(0)
        # when another user submits a job
        job = await store.jobs.insert(a_job(model="echo", target="echo", user_id=2), actor="ann")
        # then it is performed while all of the others still hang
        while (await store.jobs.get(job.id)).status == "bot":
            await asyncio.sleep(0)
        assert await store.jobs.count(filters, at_most=100) == len(hogs)
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
