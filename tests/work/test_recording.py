"""The record of a call with a waiting caller while the store refuses writes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.errors import JobNotFound, Overloaded
from signoff.stores import schema
from support.live_server import chat, live, until, words

pytestmark = pytest.mark.anyio


async def test_a_slow_call_answered_while_the_disk_is_full_is_recorded_afterwards(tmp_path: Path) -> None:
    # given a store that refuses writes, as if its disk were full
    async with live(tmp_path, log_after_seconds=0.05) as server:
        token = await server.token()
        assert (await server.ask("GET", "/v1/models", token))[0] == 200  # so that the caller is cached
        writer = server.services.store._database._writer  # type: ignore[attr-defined]
        run, refused = writer._run_group, asyncio.Event()

        async def refuse(group: object) -> list[Any]:
            refused.set()
            raise Overloaded("The disk is full.")

        writer._run_group = refuse
        # when a call is answered that was slow enough to be recorded before its end
        status, answer = await server.ask("POST", "/v1/chat/completions", token, json=chat("hello", "echo/delay=0.3"))
        assert (status, words(answer), refused.is_set()) == (200, "hello", True)
        writer._run_group = run

        # then its row is written with its end, once
        async def list_jobs() -> list[Job] | None:
            return await server.services.store.jobs.list(JobFilter()) or None

        [job] = await until(list_jobs)
        assert job.status == "success"


async def test_a_call_whose_job_was_deleted_meanwhile_is_not_stored_again(tmp_path: Path) -> None:
    # given a call that is stored before its end
    async with live(tmp_path, log_after_seconds=0.05) as server:
        token, store = await server.token(), server.services.store
        call = asyncio.ensure_future(
            server.ask("POST", "/v1/chat/completions", token, json=chat("hello", "echo/delay=3"))
        )

        async def list_jobs() -> list[Job] | None:
            return await store.jobs.list(JobFilter()) or None

        await until(list_jobs)
        # when its job has lapsed and is deleted while the process is suspended
        await store._database.write(lambda tx: tx.conn.execute(sa.delete(schema.jobs)).rowcount)  # type: ignore[attr-defined]
        # then its caller gets an error, and the job stays deleted
        assert (await call)[0] == 404
        await store.changed("models")
        assert await list_jobs() is None


async def test_a_call_with_an_unknown_record_is_not_stored_again_after_the_retention(tmp_path: Path) -> None:
    # given a call whose row is committed, although its server does not learn of it
    async with live(tmp_path, log_after_seconds=0.05, retention_days=1e-6, sweep_seconds=600) as server:
        token, store = await server.token(), server.services.store
        assert (await server.ask("GET", "/v1/models", token))[0] == 200  # so that the caller is cached
        writer, transition = store._database._writer, store.jobs.transition  # type: ignore[attr-defined]
        run, has_missed = writer._run_group, asyncio.Event()

        async def lose_results(group: Any) -> list[Any]:
            await run(group)
            raise Overloaded("The connection is lost.")

        async def watched_transition(*args: Any) -> Job:
            try:
                return await transition(*args)
            except JobNotFound:
                has_missed.set()
                raise

        writer._run_group, store.jobs.transition = lose_results, watched_transition
        status, answer = await server.ask("POST", "/v1/chat/completions", token, json=chat("hello", "echo/delay=0.3"))
        assert (status, words(answer)) == (200, "hello")
        # when its job is deleted before the server reaches the database again
        with pytest.raises(Overloaded):
            await store._database.write(lambda tx: tx.conn.execute(sa.delete(schema.jobs)).rowcount)  # type: ignore[attr-defined]
        writer._run_group = run
        # then the job stays deleted
        await has_missed.wait()
        await store.changed("models")
        assert await store.jobs.list(JobFilter()) == []
