"""The periodic sweep of old jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.store import TransitionRequest
from signoff.work import sweep
from signoff.work.services import Services
from support.live_server import Live, live
from support.stores import a_job, together

pytestmark = pytest.mark.anyio


async def test_one_sweep_deletes_all_old_jobs_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "PURGE_BATCH_SIZE", 20)
    async with live(tmp_path, retention_days=1e-12, sweep_seconds=600) as server:
        store = server.services.store
        await together(store.jobs.insert(a_job(status="fail", lane="now"), actor="test") for _ in range(90))

        await sweep.sweep(server.services)

        assert await store.jobs.count(JobFilter(), at_most=10_000) == 0


async def test_a_row_that_cannot_be_changed_stops_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with live(tmp_path, sweep_seconds=600, release_after_seconds=0, retention_days=1e-12) as server:
        store = server.services.store
        # given three jobs whose leases have lapsed, one of which no transition can change
        lapsed = [await store.jobs.insert(a_job(lane="now", lease="l"), actor="test", lease_seconds=-1) for _ in "abc"]
        transition = store.jobs.transition

        async def failing_transition(job_id: str, *steps: TransitionRequest) -> Job:
            if job_id == lapsed[0].id:
                raise RuntimeError("no")
            return await transition(job_id, *steps)

        monkeypatch.setattr(store.jobs, "transition", failing_transition)
        # when a step of the sweep fails, too
        monkeypatch.setattr(sweep, "_expire_reviews", failing_step)
        await sweep.sweep(server.services)
        # then the others have ended, and the later step that deletes old jobs has deleted them
        assert [await status_of(server, job.id) for job in lapsed] == ["bot", None, None]


async def failing_step(services: Services) -> None:
    raise RuntimeError("no")


async def status_of(server: Live, job_id: str) -> str | None:
    job = await server.services.store.jobs.get(job_id)
    return None if job is None else job.status
