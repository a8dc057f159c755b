"""The queries by which KEDA scales workers, on the schema that they read."""

from __future__ import annotations

import re
from pathlib import Path

import asyncpg
import pytest

from deploy.paths import DEPLOY
from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.server.bootstrap import migrate, open_services
from signoff.settings import Settings
from signoff.work.admin.people import create_user
from signoff.work.submit import submit

QUERIES = DEPLOY / "helm" / "signoff" / "queries"
# Copies of the first job.
MANY = """
INSERT INTO jobs SELECT (jsonb_populate_record(job, jsonb_build_object('id', 'copy' || number))).*
FROM jobs AS job, generate_series(1, $1::int) AS number WHERE job.id = (SELECT min(id) FROM jobs)
"""
CHANGES = {
    "is due for ten seconds": "due_at = due_at - 10000000",
    "is due in an hour": "due_at = due_at + 3600000000",
    "is running": "lease = 'x', lease_until = due_at",
    "is a run that waits for its steps": "parked_at = due_at",
    "has ended": "status = 'success'",
}


@pytest.mark.anyio
async def test_workers_are_scaled_by_jobs_that_are_due_or_running(postgres_url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=postgres_url)
    await migrate(settings)
    connection = await asyncpg.connect(postgres_url)
    assert await numbers(connection) == (0, 0)
    async with open_services(settings) as services:
        user = await create_user(services, "ann@example.com", "user")
        caller = Caller(user_id=user.id, token_id=0, role="user", email=user.email)
        for change in CHANGES.values():
            job = await submit(services, Ask(door="test", caller=caller, body=b'"hello"', target="echo"))
            await connection.execute(f"UPDATE jobs SET {change} WHERE id = $1", job.id)
    waiting, age_seconds = await numbers(connection)
    await connection.close()
    assert waiting == 2
    assert 10 <= age_seconds < 600


@pytest.mark.anyio
async def test_the_oldest_job_is_seen_behind_many_younger_ones_of_others(postgres_url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=postgres_url)
    await migrate(settings)
    connection = await asyncpg.connect(postgres_url)
    async with open_services(settings) as services:
        for email in ("ann@example.com", "bob@example.com"):
            user = await create_user(services, email, "user")
            caller = Caller(user_id=user.id, token_id=0, role="user", email=user.email)
            job = await submit(services, Ask(door="test", caller=caller, body=b'"hello"', target="echo"))
    await connection.execute(MANY, 10_001)
    # Bob's job is the oldest one, and the last one of the table
    await connection.execute("UPDATE jobs SET due_at = due_at - 3600000000 WHERE id = $1", job.id)
    _, age_seconds = await numbers(connection)
    assert 3600 <= age_seconds < 3600 + 600
    await connection.execute("SET enable_seqscan = off")
    plan = await connection.fetch(f"EXPLAIN {(QUERIES / 'age.sql').read_text()}")
    await connection.close()
    assert {index for (line,) in plan for index in re.findall(r"using (\S+)", line)} == {"jobs_to_claim"}
    assert not any("Sort" in line or "Seq Scan" in line for (line,) in plan)


async def numbers(connection: asyncpg.Connection) -> tuple[int, float]:
    """Return the results of the queries."""
    jobs, age = [(QUERIES / name).read_text() for name in ("jobs.sql", "age.sql")]
    return await connection.fetchval(jobs), await connection.fetchval(age)
