"""The check of a job's events, on the events of a real run that is parked and woken, and on ones that break a law."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from faults.tables import StoredJob
from faults.walk import GUARD_CHECKS, check_events
from signoff.core.access import Caller
from signoff.core.filters import JobFilter
from signoff.core.transitions import Guard
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, live, until

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")


def test_every_guard_is_checked() -> None:
    assert GUARD_CHECKS.keys() == set(Guard)


async def parked_run(server: Live) -> str:
    """Create a run that waits for a held step, and return its id."""
    token = await server.token()
    await server.model("careful", review="always")
    prompt = {"name": "ask_careful", "body": "{question}", "model": "careful"}
    assert (await server.ask("POST", "/api/prompts", token, json=prompt))[0] == 201
    pipeline = {"name": "flow", "body": "ask_careful(question)"}
    assert (await server.ask("POST", "/api/pipelines", token, json=pipeline))[0] == 201
    job = {"target": "flow", "body": {"question": "hi"}}
    _, submitted = await server.ask("POST", "/api/jobs", token, json=job)
    await server.job_when(token, submitted["job_id"], lambda job: job["parked_at"] is not None)
    return submitted["job_id"]


async def test_the_events_of_a_run_that_was_parked_break_no_law_and_changed_ones_do(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        run_id = await parked_run(server)
        [step] = await server.services.store.jobs.list(JobFilter(status="human", with_steps=True))
        await decide(server.services, REVIEWER, step.id, VerdictRequest(verdict="approve"))

        async def ended() -> StoredJob | None:
            job = await server.services.store.jobs.get(run_id)
            assert job is not None
            events = await server.services.store.jobs.events(run_id)
            return StoredJob(job=job, events=events, decisions={}, deliveries=[]) if job.is_terminal else None

        stored = await until(ended)
    assert [event.verb for event in stored.events].count("park") == 1
    assert list(check_events(stored)) == []
    # a run that is woken without having been parked
    events = [event for event in stored.events if event.verb != "park"]
    renumbered = [msgspec.structs.replace(event, seq=number) for number, event in enumerate(events, 1)]
    findings = check_events(msgspec.structs.replace(stored, events=renumbered))
    assert any(finding.law == "moves" and Guard.PARKED.value in finding.text for finding in findings)
