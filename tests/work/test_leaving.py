"""Cancellation: a client that disconnects and an owner who cancels a job both stop the model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fakes.upstream import FakeUpstream, fake_upstream
from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.filters import JobFilter
from signoff.core.model import Model
from signoff.server.bootstrap import run_services
from signoff.settings import Settings
from signoff.work.admin.registry import register_model
from signoff.work.jobs.cancel import cancel
from signoff.work.services import Services
from signoff.work.submit import submit
from support.live_server import chat, live, until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("behaviour", "stream", "text"),
    [
        ("hang-before-headers", False, "hello"),
        ("hang-before-headers", False, "a body that is read in parts" * 10_000),
        ("hang-before-headers", True, "hello"),
        ("hang-mid-body", False, "hello"),
        ("hang-mid-stream", True, "hello"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
async def test_a_client_that_leaves_stops_the_upstream_within_a_second(
    behaviour: str,
    stream: bool,
    text: str,
    tmp_path: Path,
) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        # given a call at an upstream that does not answer
        await server.model("stuck", kind="openai", url=fake.at(behaviour))
        token = await server.token()
        task = asyncio.ensure_future(
            server.ask("POST", "/v1/chat/completions", token, json=chat(text, "stuck", stream=stream))
        )
        await fake.until_stuck()
        # when the client leaves
        task.cancel()
        # then the upstream call is closed, and the job says why
        assert await fake.all_closed()
        job = await until(lambda: ended_job(server.services))
        assert job == ("fail", "cancelled")


async def test_a_job_cancelled_at_one_process_stops_in_another_within_a_second(
    tmp_path: Path, postgres_url: str
) -> None:
    async with fake_upstream() as fake, live(tmp_path, database_url=postgres_url) as server:
        await assert_cancel_stops_the_call(fake, server.services, tmp_path, postgres_url)


async def test_a_job_cancelled_on_sqlite_stops_within_a_second(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await assert_cancel_stops_the_call(fake, server.services, tmp_path, None)


async def assert_cancel_stops_the_call(fake: FakeUpstream, services: Services, tmp_path: Path, url: str | None) -> None:
    """Cancel a job from another process, and assert that its upstream call is stopped."""
    await register_model(services, Model(name="stuck", kind="openai", url=fake.at("hang-before-headers")))
    owner = Caller(user_id=1, token_id=1, role="user", email="a@example.com")
    # given a process that works on a job, and another one without workers
    async with run_services(
        Settings(data_dir=tmp_path / "data", database_url=url, lease_seconds=600), work=False
    ) as other:
        job = await submit(other, Ask(door="native", caller=owner, body=b'{"messages": []}', target="stuck"))
        await fake.until_stuck()
        # when another process cancels it
        await cancel(other, owner, job.id)
        # then the call is stopped
        assert await fake.all_closed()


async def ended_job(services: Services) -> tuple[str, str] | None:
    """Return the status and the error code of the job once it has ended; else None."""
    jobs = await services.store.jobs.list(JobFilter())
    if not jobs or not jobs[0].is_terminal:
        return None
    return jobs[0].status, jobs[0].error.code if jobs[0].error else ""
