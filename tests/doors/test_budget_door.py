"""Error budgets over HTTP: saved with a policy, spent by calls, and shown to admins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from signoff.core.audit import AuditFilter
from support.live_server import Live, chat, live

pytestmark = pytest.mark.anyio
BUDGET = {"answers": 10_000, "share": 0.02, "confidence": 0.95, "audit_rate": 0.1}
MEMBERS = {"allowed", "passed", "audits", "audits_open", "wrong_found", "bound", "open", "claim"}


async def saved(server: Live, admin: str, budget: dict[str, Any] = BUDGET, **more: Any) -> tuple[int, Any]:
    """Save a policy for all models whose names begin with `echo`."""
    policy = {"target": "echo*", "rules": [], "budget": budget} | more
    return await server.ask("PUT", "/api/policies/careful", admin, json=policy)


async def test_a_budget_is_shown_from_the_start_and_counts_what_passes(tmp_path: Path) -> None:
    async with live(tmp_path, hold_seconds=0.01, stream_hold_seconds=0.01) as server:
        admin, user = await server.token("admin"), await server.token()
        assert (await saved(server, admin))[0] == 200
        status, figures = await server.ask("GET", "/api/policies/careful/budget", admin)
        assert status == 200
        assert figures.keys() >= MEMBERS
        assert (figures["allowed"], figures["passed"], figures["bound"], figures["open"]) == (200, 0, 42, True)
        assert (figures["audits"], figures["audits_open"], figures["wrong_found"]) == (0, 0, 0)
        passed = held = 0
        for number in range(40):
            stream = {"stream": True} if number % 2 else {}
            status, answer = await server.ask("POST", "/v1/chat/completions", user, json=chat(f"{number}", **stream))
            is_held = status == 504 or "review_pending" in str(answer)
            held, passed = held + is_held, passed + (not is_held)
        _, figures = await server.ask("GET", "/api/policies/careful/budget", admin)
        assert (figures["passed"], figures["audits_open"]) == (passed, held)
        assert passed + held == 40


async def test_a_budget_that_cannot_work_is_refused_with_what_does(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        status, answer = await saved(server, admin, BUDGET | {"answers": 1_000})
        assert status == 400
        assert "`answers` to at least 2150" in str(answer)
        assert "`audit_rate` to at least" in str(answer)
        assert (await saved(server, admin, BUDGET | {"answers": 2150}))[0] == 200
        hold = {"if": "true", "then": "hold", "deadline_seconds": 5, "on_deadline": "approve"}
        status, answer = await saved(server, admin, rules=[hold])
        assert (status, "on_deadline" in str(answer)) == (400, True)


async def test_planted_items_are_added_listed_and_removed_by_admins(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        await saved(server, admin)
        item = {"payload": chat("What is 2 + 2?"), "response": {"choices": []}}
        ids = [(await server.ask("POST", "/api/policies/careful/planted", admin, json=item))[1]["id"] for _ in "abc"]
        _, page = await server.ask("GET", "/api/policies/careful/planted?limit=2", admin)
        assert ([each["id"] for each in page["data"]], page["next"]) == (ids[:2], ids[1])
        _, page = await server.ask("GET", f"/api/policies/careful/planted?limit=2&after={page['next']}", admin)
        assert ([each["id"] for each in page["data"]], page["next"]) == (ids[2:], None)
        assert (await server.ask("DELETE", f"/api/policies/careful/planted/{ids[0]}", admin))[0] == 204
        assert (await server.ask("DELETE", f"/api/policies/careful/planted/{ids[0]}", admin))[0] == 404
        for bad in ({}, item | {"path": "nowhere"}, item | {"more": 1}):
            assert (await server.ask("POST", "/api/policies/careful/planted", admin, json=bad))[0] == 400
        assert (await server.ask("GET", "/api/policies/careful/catch-rates", admin))[1] == {"data": []}


async def test_a_restart_begins_a_period_and_is_recorded(tmp_path: Path) -> None:
    async with live(tmp_path, hold_seconds=0.01, stream_hold_seconds=0.01) as server:
        admin, user = await server.token("admin"), await server.token()
        await saved(server, admin)
        await server.ask("POST", "/v1/chat/completions", user, json=chat("hello"))
        status, figures = await server.ask("POST", "/api/policies/careful/budget/restart", admin)
        assert (status, figures["period"], figures["passed"], figures["audits"]) == (200, 2, 0, 0)
        [entry] = await server.services.store.audit.page(AuditFilter(action="budget_restarted"))
        assert entry.actor == "user:admin@example.com"


async def test_a_policy_without_a_budget_has_none(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        await server.ask("PUT", "/api/policies/plain", admin, json={"target": "echo"})
        for path in ("plain", "nothing"):
            assert (await server.ask("GET", f"/api/policies/{path}/budget", admin))[0] == 404


async def test_a_budget_for_each_group_is_listed_in_pages_shown_and_restarted(tmp_path: Path) -> None:
    async with live(tmp_path, hold_seconds=0.01) as server:
        admin = await server.token("admin")
        assert (await saved(server, admin, BUDGET | {"per": "user"}))[0] == 200
        status, groups = await server.ask("GET", "/api/policies/careful/budget", admin)
        assert (status, groups["per"], groups["groups"], groups["data"], groups["next"]) == (200, "user", 0, [], None)
        assert "of one user" in groups["claim"]
        tokens = [await server.token(email=f"user-{number}@example.com") for number in range(3)]
        for token in tokens:
            await server.ask("POST", "/v1/chat/completions", token, json=chat("hello"))
        _, page = await server.ask("GET", "/api/policies/careful/budget?limit=2", admin)
        assert (page["groups"], [each["user"] for each in page["data"]]) == (
            3,
            ["user-0@example.com", "user-1@example.com"],
        )
        _, rest = await server.ask("GET", f"/api/policies/careful/budget?limit=2&after={page['next']}", admin)
        [last] = rest["data"]
        assert (last["user"], last["passed"] + last["audits"], rest["next"]) == ("user-2@example.com", 1, None)
        assert last.keys() >= MEMBERS
        _, one = await server.ask("GET", f"/api/policies/careful/budget?group={last['group']}", admin)
        assert one == last
        path = f"/api/policies/careful/budget/restart?group={last['group']}"
        status, new = await server.ask("POST", path, admin)
        assert (status, new["passed"] + new["audits"], new["group"]) == (200, 0, last["group"])
        status, none = await server.ask("POST", "/api/policies/careful/budget/restart", admin)
        assert (status, none["groups"], none["data"]) == (200, 0, [])
        for path in ("budget?group=77", "budget?group=", f"budget?group={last['group']}"):
            assert (await server.ask("GET", f"/api/policies/careful/{path}", admin))[0] == 404


async def test_groups_of_a_budget_are_checked(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        status, answer = await saved(server, admin, BUDGET | {"per": "tag"})
        assert (status, "`budget.per` must be" in str(answer)) == (400, True)
        status, answer = await saved(server, admin, BUDGET | {"per": "user", "answers": 1000})
        assert (status, "1000 of one user" in str(answer)) == (400, True)
        await saved(server, admin)
        for method, path in (("GET", "budget"), ("POST", "budget/restart")):
            status, answer = await server.ask(method, f"/api/policies/careful/{path}?group=1", admin)
            assert (status, "leave out `group`" in str(answer)) == (400, True)
