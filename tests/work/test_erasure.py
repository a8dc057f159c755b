"""Erasure of users: nothing that they sent or got is left in the database, and nobody else loses anything."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from signoff.core.filters import JobFilter
from signoff.core.job import Draft
from signoff.core.reviews.receipt import parse_line
from signoff.core.usage import UsageQuery
from signoff.records import ReceiptFilter
from signoff.work.admin.erasure import begin_erasure, continue_erasures, erase_user
from support.live_server import Live, live, until
from support.stores import a_job

pytestmark = pytest.mark.anyio
SECRET = "tangerine"


def chat(text: str) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}]}


async def used(server: Live, token: str, reviewer: str) -> None:
    """Leave contents of every kind: a call, a cached answer, a held job with a draft, a decided one, a waiting one."""
    for headers in ({}, {"idempotency-key": SECRET}):
        status, _ = await server.ask("POST", "/v1/chat/completions", token, json=chat(SECRET), headers=headers)
        assert status == 200
    for status in ("human", "success"):
        _, reply = await server.ask("POST", "/enqueue", token, json=chat(SECRET))
        await server.job_when(reviewer, reply["job_id"], lambda job: job["status"] == "human")
        verdict = {"id": reply["job_id"], "status": status, "response": SECRET, "reason": SECRET}
        assert (await server.ask("POST", "/reviewJob", reviewer, json=verdict))[0] == 200
    await server.ask("POST", "/api/prompts", token, json={"name": f"{SECRET}_prompt", "body": SECRET})
    await server.ask("POST", "/api/keys", token, json={"name": SECRET, "key": f"sk-{SECRET}"})


def rows_with(path: Path, word: str) -> dict[str, int]:
    """Return the number of rows of each table that have a word in a column, whatever its type."""
    counts = dict[str, int]()
    with sqlite3.connect(path) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            rows = connection.execute(f'SELECT * FROM "{table}"').fetchall()
            if count := sum(word.encode() in repr(row).encode() for row in rows):
                counts[table] = count
    return counts


async def test_nothing_of_an_erased_user_is_left(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        store, database = server.services.store, tmp_path / "data" / "signoff.db"
        ann, bob = await server.token("user", "ann@example.com"), await server.token("user", "bob@example.com")
        reviewer, admin = await server.token("reviewer"), await server.token("admin")
        await used(server, ann, reviewer)
        await server.ask("POST", "/v1/chat/completions", bob, json=chat("keep me"))
        user, other = [await store.people.user(f"{name}@example.com") for name in ("ann", "bob")]
        assert user is not None
        assert other is not None

        async def is_logged() -> bool | None:  # calls are written after their answers
            counts = [len(await store.jobs.list(JobFilter(user_id=each.id))) for each in (user, other)]
            return counts == [4, 1] or None

        await until(is_logged)
        assert {"jobs", "events", "decisions", "used_keys"} <= rows_with(database, SECRET).keys()
        usage = await store.usage.report(UsageQuery())

        status, reply = await server.ask("DELETE", f"/api/users/{user.id}?erase=true", admin)
        assert (status, reply) == (202, {"id": user.id, "status": "erasing"})

        async def is_empty() -> bool | None:
            return not await store.jobs.list(JobFilter(user_id=user.id)) or None

        await until(is_empty)
        assert (await server.ask("GET", "/jobs", ann))[0] == 401
        left = rows_with(database, SECRET)
        assert left.keys() <= {"audit"}, left  # the names of prompts and keys that were created
        assert len(await store.jobs.list(JobFilter(user_id=other.id))) == 1
        signed = [parse_line(row.line)[0] for row in await store.receipts.page(ReceiptFilter())]
        assert [receipt.verdict for receipt in signed if hasattr(receipt, "verdict")] == ["approve"]
        _, totals = await store.usage.report(UsageQuery())
        assert totals.completion_tokens == usage[1].completion_tokens


async def test_an_erasure_goes_on_after_a_crash_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with live(tmp_path, sweep_seconds=3600) as server:
        services = server.services
        await server.token("admin")
        ann = await server.token("user", "ann@example.com")
        user = await services.store.people.user("ann@example.com")
        assert user is not None
        for _ in range(3):
            await server.ask("POST", "/v1/chat/completions", ann, json=chat(SECRET))
        running = a_job(user_id=user.id, lease="worker", body=SECRET.encode(), draft=Draft(response=SECRET))
        await services.store.jobs.insert(running, actor="test", lease_seconds=600)
        from signoff.commands.terminal import OPERATOR

        await begin_erasure(services, OPERATOR, user.id)  # the process ends here
        monkeypatch.setattr("signoff.work.admin.erasure.PAGE", 1)
        await continue_erasures(services, max_pages=2)
        assert len(await services.store.jobs.list(JobFilter(user_id=user.id))) == 2
        await continue_erasures(services, max_pages=10)
        assert await services.store.jobs.list(JobFilter(user_id=user.id)) == []
        assert len(await services.store.erasures.pending(10)) == 1  # calls may still end
        monkeypatch.setattr("signoff.work.admin.erasure.FINAL_SECONDS", -1)
        await continue_erasures(services, max_pages=10)
        assert await services.store.erasures.pending(10) == []
        assert await services.store.people.user("ann@example.com") is None
        assert await erase_user(services, OPERATOR, user.id) == 0  # once more


async def test_erasing_needs_a_confirmation_and_never_takes_the_last_admin(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        user = await server.services.store.people.user("admin@example.com")
        assert user is not None
        assert (await server.ask("DELETE", f"/api/users/{user.id}", admin))[0] == 400
        assert (await server.ask("DELETE", f"/api/users/{user.id}?erase=true", admin))[0] == 409
        assert await server.services.store.erasures.pending(10) == []
