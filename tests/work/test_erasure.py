"""Erasure of users: nothing that they sent or got is left in the database, and nobody else loses anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from doors.test_every_door import DOORS
from doors.test_generate_door import ROUTES
from signoff.core.filters import JobFilter
from signoff.core.job import Draft
from signoff.core.reviews.receipt import parse_line
from signoff.core.usage import UsageQuery
from signoff.records import ReceiptFilter
from signoff.stores.sql import SqlStore
from signoff.work.admin.erasure import begin_erasure, continue_erasures, erase_user
from support.batches import a_line, created, ended
from support.live_server import Live, chat, live, until
from support.remains import columns_with, files_with
from support.stores import a_job

pytestmark = pytest.mark.anyio
SECRET = "tangerine"


OPENED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the settings of each kind of database."""
    return {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgres_url")}


async def reviewed_models(server: Live, admin: str) -> None:
    """Register models whose answers are held, audited, or looked at by a judge and a moderator."""
    await server.model("held", review="always")
    for name in ("audited", "judged", "failing", "gpt-model"):
        await server.model(name)
    budget = {"answers": 10_000, "share": 0.02, "audit_rate": 0.5, "planted_rate": 1}
    judged = {"rules": [{"if": "signals.judge < 2 && signals.moderation.flagged", "then": "hold"}]}
    policies = {
        "audited": {"budget": budget, "default": {"then": "audit", "audit": 1}},
        "judged": judged | {"judge": "echo", "moderation": "echo"},
        "failing": judged | {"judge": "echo/fail", "moderation": "echo"},
    }
    for name, policy in policies.items():
        status, reply = await server.ask("PUT", f"/api/policies/{name}", admin, json={"target": name} | policy)
        assert status == 200, reply
    assert (await server.ask("POST", "/api/functions/sync", admin))[0] == 200
    planted = {"payload": chat("planted"), "response": "wrong"}
    assert (await server.ask("POST", "/api/policies/audited/planted", admin, json=planted))[0] == 201


async def used(server: Live, token: str, reviewer: str) -> None:
    """Leave contents of every kind: at each door, in the cache, on the desk, in a run, in a batch, and with a judge."""
    body = json.dumps(chat(f"score 1 {SECRET}")).encode()
    for door, send in DOORS.items():
        status, reply = await send(server, token, body)
        assert status in {200, 202}, (door, reply)
    for more in ({}, OPENED):
        headers = {"idempotency-key": f"{SECRET}{len(more)}"}
        status, _ = await server.ask("POST", "/v1/chat/completions", token, json=chat(SECRET) | more, headers=headers)
        assert status == 200
    for path in ("/generate", "/chat_completion"):
        request = ROUTES[path] | {"job_id": SECRET + path} | ({"content": SECRET} if "content" in ROUTES[path] else {})
        assert (await server.ask("POST", path, token, json=request))[0] == 200
    claude = chat(SECRET) | {"max_tokens": 10}
    assert (await server.ask("POST", "/v1/messages", token, json=claude))[0] == 200
    assert (await server.ask("POST", "/v1/responses", token, json={"model": "echo", "input": SECRET}))[0] == 200
    await be_reviewed(server, token, reviewer)
    await compose(server, token)
    await run_batch(server, token)
    await server.ask("POST", "/api/keys", token, json={"name": "mine", "key": f"sk-{SECRET}"})
    metadata = {"body": chat(SECRET), "metadata": {"note": SECRET}, "due_at": "2999-01-01T00:00:00Z"}
    assert (await server.ask("POST", "/api/jobs", token, json=metadata))[0] == 202


async def be_reviewed(server: Live, token: str, reviewer: str) -> None:
    """Get answers judged, audited, edited, rejected, sent back and cancelled."""
    for model in ("judged", "failing"):
        await server.ask("POST", "/v1/chat/completions", token, json=chat(f"9 {SECRET}", model))
    verdicts = ({"status": "human"}, {"status": "success"}, {"status": "fail"}, {"status": "bot"}, {})
    for model, verdict in [*(("held", each) for each in verdicts), ("audited", {})]:
        _, reply = await server.ask("POST", "/api/jobs", token, json={"body": chat(SECRET, model)})
        await server.job_when(reviewer, reply["job_id"], lambda job: job["status"] == "human")
        if verdict:
            request = {"id": reply["job_id"], "response": SECRET, "reason": SECRET} | verdict
            assert (await server.ask("POST", "/reviewJob", reviewer, json=request))[0] == 200
        else:
            assert (await server.ask("DELETE", f"/api/jobs/{reply['job_id']}", token))[0] == 200


async def compose(server: Live, token: str) -> None:
    """Run a pipeline of a private prompt and of a held step."""
    for name, text in (("first", SECRET), ("second", f"{SECRET} {{text}}")):
        item = {"name": f"private_{name}", "body": text, "model": "echo" if name == "first" else "held"}
        assert (await server.ask("POST", "/api/prompts", token, json=item))[0] == 201
    pipeline = {"name": "private_run", "body": "private_second(identity(private_first()))"}
    status, reply = await server.ask("POST", "/api/pipelines", token, json=pipeline)
    assert status == 201, reply
    run = {"target": "private_run", "path": "/predict", "body": {}, "metadata": SECRET}
    _, reply = await server.ask("POST", "/api/jobs", token, json=run)

    async def is_parked() -> bool | None:
        job = await server.services.store.jobs.get(reply["job_id"])
        return (job is not None and job.parked_at is not None) or None

    await until(is_parked)


async def run_batch(server: Live, token: str) -> None:
    """Run a batch with an answer, and one that is held."""
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=token) as ai:
        await ended(ai, await created(ai, a_line(SECRET, SECRET), metadata={"note": SECRET}))
        await created(ai, a_line("1", SECRET, model="held"))


async def test_nothing_of_an_erased_user_is_left(database: dict[str, Any], tmp_path: Path) -> None:
    async with live(tmp_path, cache="sql", log_before_answer=True, **database) as server:
        store = server.services.store
        assert isinstance(store, SqlStore)
        ann, bob = await server.token("user", "ann@example.com"), await server.token("user", "bob@example.com")
        reviewer, admin = await server.token("reviewer"), await server.token("admin")
        await reviewed_models(server, admin)
        await used(server, ann, reviewer)
        await server.ask("POST", "/v1/chat/completions", bob, json=chat("keep me"))
        user, other = [await store.people.user(f"{name}@example.com") for name in ("ann", "bob")]
        assert user is not None
        assert other is not None
        tables = {name.partition(".")[0] for name in await columns_with(store, SECRET)}
        assert tables >= {"batches", "calls", "composed_versions", "decisions", "events", "function_calls", "jobs"}
        assert files_with(tmp_path, SECRET)
        consulted = [job for job in await store.jobs.list(JobFilter(limit=1000)) if job.is_consultation]
        assert {job.status for job in consulted} == {"success", "fail"}
        usage = await store.usage.report(UsageQuery())

        status, reply = await server.ask("DELETE", f"/api/users/{user.id}?erase=true", admin)
        assert (status, reply) == (202, {"id": user.id, "status": "erasing"})

        async def is_empty() -> bool | None:
            jobs = await store.jobs.list(JobFilter(user_id=user.id, with_copies=True))
            return not (jobs or files_with(tmp_path, SECRET)) or None

        await until(is_empty)
        assert (await server.ask("GET", "/jobs", ann))[0] == 401
        assert await columns_with(store, SECRET) == {}
        assert len(await store.jobs.list(JobFilter(user_id=other.id))) == 1
        signed = [parse_line(row.line)[0] for row in await store.receipts.page(ReceiptFilter())]
        assert {receipt.verdict for receipt in signed if hasattr(receipt, "verdict")} >= {"approve", "reject", "redo"}
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
