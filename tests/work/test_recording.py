"""The record of a call with a waiting caller while the store refuses writes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.errors import Overloaded
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
