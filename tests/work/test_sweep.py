"""The periodic sweep of old jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from signoff.core.filters import JobFilter
from signoff.work import sweep
from support.live_server import live
from support.stores import a_job, together

pytestmark = pytest.mark.anyio


async def test_one_sweep_deletes_all_old_jobs_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "PURGE_BATCH_SIZE", 20)
    async with live(tmp_path, retention_days=1e-12, sweep_seconds=600) as server:
        store = server.services.store
        await together(store.jobs.insert(a_job(status="fail", lane="now"), actor="test") for _ in range(90))

        await sweep.sweep(server.services)

        assert await store.jobs.count(JobFilter(), at_most=10_000) == 0
