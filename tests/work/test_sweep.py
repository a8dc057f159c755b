"""The periodic sweep of old jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from signoff.commands.terminal import OPERATOR
from signoff.core.batch import StoredFile
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.errors import Overloaded
from signoff.server.bootstrap import open_services
from signoff.settings import Settings
from signoff.store import TransitionRequest
from signoff.work import sweep
from signoff.work.admin.erasure import begin_erasure
from signoff.work.batches import files
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


async def test_an_unavailable_blob_store_delays_no_erasure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_services(Settings(data_dir=tmp_path / "data")) as services:
        store, blobs = services.store, services.adapters.blobs
        user = await store.people.put_user("ann@example.com", "user")
        await deleted_files(services, "file-1", user_id=user.id)
        job = await store.jobs.insert(a_job(user_id=user.id), actor="test")
        await begin_erasure(services, OPERATOR, user.id)
        monkeypatch.setattr(blobs, "delete", unavailable)

        await sweep.sweep(services)

        assert await store.jobs.get(job.id) is None
        [pending] = await store.erasures.pending(10)  # its files are left
        assert pending.user_id == user.id


@pytest.mark.parametrize("failure", ["refused", "silent"])
async def test_a_blob_that_cannot_be_deleted_keeps_no_other_from_it(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_services(Settings(data_dir=tmp_path / "data")) as services:
        store, blobs = services.store, services.adapters.blobs
        await deleted_files(services, *(f"file-{number}" for number in range(5)))
        monkeypatch.setattr(files, "GARBAGE_FILES", 2)
        monkeypatch.setattr(files, "DELETE_SECONDS", 0.01)

        async def fails_for_two(name: str) -> None:
            if name in {"files/file-0", "files/file-1"}:
                await (unavailable(name) if failure == "refused" else asyncio.Event().wait())

        monkeypatch.setattr(blobs, "delete", fails_for_two)
        skipped = set[str]()
        await files.collect_files(services, skipped)
        assert [file.id for file in await store.files.garbage(10)] == ["file-0", "file-1"]
        # and they are tried again in the next turn
        assert skipped == set()
        monkeypatch.setattr(blobs, "delete", deleting)
        await files.collect_files(services, skipped)
        assert await store.files.garbage(10) == []


async def test_a_turn_ends_in_time_and_the_next_one_begins_with_other_blobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_services(Settings(data_dir=tmp_path / "data")) as services:
        await deleted_files(services, "file-0", "file-1")
        blobs, names = services.adapters.blobs, list[str]()

        async def silent(name: str) -> None:
            names.append(name)
            await asyncio.Event().wait()

        monkeypatch.setattr(blobs, "delete", silent)
        skipped = set[str]()
        while len(names) < 2:  # a turn on a slow machine may end before its first deletion
            await files.collect_files(services, skipped, seconds=0.01)
        assert names == ["files/file-0", "files/file-1"]


async def test_a_store_that_is_down_is_logged_once_in_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_services(Settings(data_dir=tmp_path / "data")) as services:
        await deleted_files(services, *(f"file-{number}" for number in range(5)))
        monkeypatch.setattr(services.adapters.blobs, "delete", unavailable)
        monkeypatch.setattr(files, "GARBAGE_FILES", 1)
        monkeypatch.setattr(files, "MAX_FAILURES", 3)
        with capture_logs() as logs:
            await files.collect_files(services)
        assert [(each["event"], each["files"]) for each in logs] == [("blobs_not_deleted", 3)]


async def deleting(name: str) -> None:
    return


async def unavailable(name: str) -> None:
    raise Overloaded(f"The blob store cannot be used now: {name}")


async def deleted_files(services: Services, *file_ids: str, user_id: int = 1) -> None:
    """Store files, and delete them for their owner."""
    store = services.store.files
    for file_id in file_ids:
        file = StoredFile(id=file_id, user_id=user_id, filename="a.jsonl", purpose="batch")
        await store.add(file)
        await store.complete(msgspec.structs.replace(file, size_bytes=1), lifetime_seconds=None)
        assert await store.delete(file_id)


async def failing_step(services: Services) -> None:
    raise RuntimeError("no")


async def status_of(server: Live, job_id: str) -> str | None:
    job = await server.services.store.jobs.get(job_id)
    return None if job is None else job.status
