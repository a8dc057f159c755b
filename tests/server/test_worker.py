"""The worker's loop: it never sleeps while there are jobs that it could perform."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from signoff.brokers.local import LocalBroker
from signoff.core.filters import JobFilter
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
        pauses, done, poll = list[int](), asyncio.Event(), LocalBroker.poll

        async def counting_poll(broker: LocalBroker, seconds: float) -> bool:
            was_woken = await poll(broker, seconds)
            if not was_woken:
                pauses.append(await jobs.count(JobFilter(status="bot"), at_most=10_000))
            if not await jobs.count(JobFilter(status="bot"), at_most=10_000):
                done.set()
            return was_woken

        monkeypatch.setattr(LocalBroker, "poll", counting_poll)
        worker = asyncio.ensure_future(Worker(services, concurrency=4, drain_seconds=1).run())
        await done.wait()
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
        # then it waited a whole second only when there were none left
        assert [left for left in pauses if left] == []
        assert await jobs.count(JobFilter(status="success"), at_most=10_000) == JOBS
