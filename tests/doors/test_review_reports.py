"""Receipts, feedback and figures over HTTP, of decisions that reviewers made over HTTP."""

from __future__ import annotations

import base64
import gc
import json
from pathlib import Path
from typing import Any

import pytest

from signoff.core.access import Caller
from signoff.core.reviews.feedback import Feedback, FeedbackQuery
from signoff.core.reviews.receipt import salted_digest
from signoff.core.reviews.receipt_chain import ChainVerifier
from signoff.work.reviews.feedback import export_end, export_feedback
from support.live_server import Live, live

pytestmark = pytest.mark.anyio

ADMIN = Caller(user_id=0, token_id=0, role="admin", email="admin@example.com")


async def reviewed(server: Live, user: str, reviewer: str, status: str, **more: Any) -> str:
    """Queue a request, and give a verdict on its answer; return the id of the job."""
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    _, reply = await server.ask("POST", "/enqueue", user, json=body)
    await server.job_when(reviewer, reply["job_id"], lambda job: job["status"] == "human")
    verdict = {"id": reply["job_id"], "status": status} | more
    code, response = await server.ask("POST", "/reviewJob", reviewer, json=verdict)
    assert code == 200, response
    return reply["job_id"]


async def test_decisions_are_exported_counted_and_signed(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user, reviewer, admin = [await server.token(role) for role in ("user", "reviewer", "admin")]
        edited = await reviewed(server, user, reviewer, "success", response="better")
        rejected = await reviewed(server, user, reviewer, "fail", reason="Rude.")

        rows = await lines(server, admin)
        assert [(row["job_id"], row["verdict"], row["edited"]) for row in rows] == [
            (edited, "approve", True),
            (rejected, "reject", False),
        ]
        assert rows[1]["reason"] == "Rude."
        assert rows[0]["reviewer"] == "reviewer@example.com"
        pairs = await lines(server, admin, "kind=preference")
        assert [pair["preferred_output"] for pair in pairs] == [[{"role": "assistant", "content": "better"}]]
        assert [row["messages"][-1]["content"] for row in await lines(server, admin, "kind=supervised")] == ["better"]
        assert [row["reason"] for row in await lines(server, admin, "kind=rejected")] == ["Rude."]
        assert await lines(server, admin, "target=other") == await lines(server, admin, "policy=other") == []
        assert await lines(server, admin, "since=2999-01-01") == await lines(server, admin, f"after={rows[-1]['seq']}")

        _, figures = await server.ask("GET", "/api/reviews/figures?by=reviewer", admin)
        _, table = await server.ask("GET", "/api/reviews/figures?by=reviewer&format=csv", admin)
        assert [line.split(",")[:2] for line in table.splitlines()] == [
            ["reviewer", "decisions"],
            *([row["reviewer"], str(row["decisions"])] for row in figures["data"]),
        ]
        [row] = figures["data"]
        assert (row["reviewer"], row["decisions"], row["edited"], row["rejected"]) == ("reviewer@example.com", 2, 1, 1)
        assert row["average_verdict_seconds"] > 0

        key, head = [(await server.ask("GET", f"/api/receipts/{name}", admin))[1] for name in ("key", "head")]
        _, page = await server.ask("GET", "/api/receipts", admin)
        chain = ChainVerifier([base64.b64decode(key["public_key"])])
        for item in page["data"]:
            chain.add(item["line"].encode())
        chain.finish()
        assert (chain.last, page["next"]) == (head["count"], None)
        _, own = await server.ask("GET", f"/api/receipts?job_id={edited}", admin)
        [item] = own["data"]
        job = await server.services.store.jobs.get(edited)
        assert job is not None
        assert item["receipt"]["released"] == salted_digest(bytes.fromhex(item["salt"]), "answer", job.response)


async def lines(server: Live, token: str, query: str = "") -> list[dict[str, Any]]:
    headers = {"authorization": f"Bearer {token}"}
    async with server.http.get(f"{server.url}/api/reviews/feedback?{query}", headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "application/x-ndjson"
        return [json.loads(line) for line in (await response.text()).splitlines()]


async def test_the_cursor_of_an_export_is_the_newest_receipt(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user, reviewer, admin = [await server.token(role) for role in ("user", "reviewer", "admin")]
        await reviewed(server, user, reviewer, "success")
        headers = {"authorization": f"Bearer {admin}"}
        async with server.http.get(f"{server.url}/api/reviews/feedback", headers=headers) as response:
            after = response.headers["x-next-after"]
        job_id = await reviewed(server, user, reviewer, "success")
        assert [row["job_id"] for row in await lines(server, admin, f"after={after}")] == [job_id]


async def test_while_a_client_reads_a_line_its_decision_is_not_kept(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user, reviewer = [await server.token(role) for role in ("user", "reviewer")]
        await reviewed(server, user, reviewer, "success")
        end = await export_end(server.services, ADMIN)
        gc.collect()  # what other tests have left
        export = export_feedback(server.services, ADMIN, FeedbackQuery(), until_seq=end)
        line = await anext(export)
        assert b'"hello"' in line
        assert [each for each in gc.get_objects() if isinstance(each, Feedback)] == []
        await export.aclose()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("feedback?kind=all", "`kind` must be one of decisions, supervised, preference, rejected (got 'all')."),
        ("feedback?since=x", "`since` must be a time such as 2026-01-31"),
        ("feedback?after=-1", "after"),
        ("figures?by=user", "`by` must be a list of policy, target, prompt, prompt_version, reviewer, hour, day"),
        ("figures?limit=0", "limit"),
    ],
    ids=["kind", "since", "after", "by", "limit"],
)
async def test_bad_parameters_are_named(tmp_path: Path, path: str, message: str) -> None:
    async with live(tmp_path) as server:
        status, response = await server.ask("GET", f"/api/reviews/{path}", await server.token("admin"))
        assert status == 400
        assert message in str(response)
