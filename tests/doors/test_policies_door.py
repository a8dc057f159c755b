"""The API of named review policies, and the dry run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from signoff.core.access import Caller
from signoff.core.filters import JobFilter
from signoff.core.job import Edit
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
RULES = [{"if": "answer.length > 3", "then": "hold"}]


async def test_each_save_is_a_version(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        budget = {"answers": 10000, "share": 0.02, "confidence": 0.95, "audit_rate": 0.1}
        budget |= {"harmless": [], "planted_rate": 0, "per": None}
        body: dict[str, Any] = {"target": "gpt-*", "rules": RULES, "budget": budget}
        status, first = await server.ask("PUT", "/api/policies/one", admin, json=body)
        assert status == 200
        assert {name: first[name] for name in ("name", "version", "target", "rules", "budget")} == {
            "name": "one",
            "version": 1,
            **body,
        }
        _, second = await server.ask("PUT", "/api/policies/one", admin, json={"target": "gpt-*"})
        assert (second["version"], second["rules"], second["default"]) == (2, [], {})
        assert (await server.ask("GET", "/api/policies/one", admin))[1] == second
        assert (await server.ask("GET", "/api/policies/one?version=1", admin))[1] == first
        assert (await server.ask("GET", "/api/policies/one/versions?limit=1", admin))[1] == {
            "data": [second],
            "next": 2,
        }
        assert (await server.ask("GET", "/api/policies/one/versions?before=2", admin))[1]["data"] == [first]
        assert (await server.ask("GET", "/api/policies?limit=1", admin))[1] == {"data": [second], "next": "one"}
        assert (await server.ask("GET", "/api/policies?after=one", admin))[1] == {"data": [], "next": None}
        status, conflict = await server.ask("PUT", "/api/policies/two", admin, json={"target": "gpt-*"})
        assert (status, "'one'" in conflict["detail"]) == (409, True)
        assert (await server.ask("DELETE", "/api/policies/one", admin))[0] == 204
        assert (await server.ask("DELETE", "/api/policies/one", admin))[0] == 404
        assert (await server.ask("GET", "/api/policies/one", admin))[0] == 404
        assert (await server.ask("GET", "/api/policies/one?version=2", admin))[1] == second
        _, audit = await server.ask("GET", "/api/audit?subject=policy:one", admin)
        assert [entry["action"] for entry in audit["data"]] == ["policy_removed", "policy_changed", "policy_created"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rules": [{"if": "answer.txt == 'x'", "then": "hold"}]},
            "`rules[0].if`: line 1, column 8: there is no field `txt`",
        ),
        ({"rules": [{"if": "true", "then": "keep"}]}, "keep"),
        ({"rules": [{"if": "true", "then": "hold", "que": "x"}]}, "que"),
        ({"rules": [{"then": "hold"}]}, "if"),
        ({"rules": [{"if": "true", "then": "ask"}]}, "`rules[0].ask` must be the name of a model"),
        ({"rules": [{"if": "true", "then": "audit", "audit": 2}]}, "`rules[0].audit` must be a probability"),
        ({"rules": [{"if": "true", "then": "pass", "queue": "x"}]}, "`rules[0].queue` is for `then` hold or audit"),
        ({"rules": [{"if": "true", "then": "hold", "priority": 10}]}, "`rules[0].priority` must be from 0 to 9"),
        ({"rules": [{"if": "true", "then": "hold", "votes": 0}]}, "`rules[0].votes` must be from 1 to 9"),
        (
            {"rules": [{"if": "true", "then": "hold", "deadline_seconds": 0}]},
            "`rules[0].deadline_seconds` must be above",
        ),
        (
            {"rules": [{"if": "true", "then": "hold", "on_deadline": {"escalate": ""}}]},
            "`rules[0].on_deadline.escalate`",
        ),
        ({"rules": [{"if": "true", "then": "reject", "code": "No!"}]}, "`rules[0].code` must be up to 64 lower-case"),
        ({"rules": [{"if": "true", "then": "hold", "message": "x"}]}, "`rules[0].message` are for `then` reject"),
        ({"rules": RULES * 101}, "`rules` must be at most 100 (got 101)"),
        ({"default": {"then": "hold", "votes": 10}}, "`default.votes` must be from 1 to 9"),
        ({"target": "a*b"}, "`target` must be the name"),
        ({"rules": [{"if": "signals.judge < 0.5", "then": "hold"}]}, "`judge` must be set"),
        ({"webhook": {"url": "http://169.254.169.254/"}}, "webhook_allow"),
        (
            {"webhook": {"url": "https://example.com/", "timeout_seconds": 0}},
            "`webhook.timeout_seconds` must be above 0",
        ),
        ({"webhook": {"url": "https://example.com/"}}, "webhook_secret"),
        ({"budget": {"answers": 0, "share": 0.1, "audit_rate": 0.1}}, "`budget.answers` must be from 1"),
        ({"budget": {"answers": 1, "share": 1.0, "audit_rate": 0.1}}, "`budget.share` must be between 0 and 1"),
        ({"target": None}, "target"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:60],
)
async def test_a_policy_that_cannot_work_is_refused(shared_server: Live, changes: dict[str, Any], message: str) -> None:
    admin = await shared_server.token("admin")
    body = {"target": "echo"} | changes
    status, problem = await shared_server.ask("PUT", "/api/policies/bad", admin, json=body)
    assert (status, message in problem["detail"]) == (400, True), problem


@pytest.fixture
async def shared_server(tmp_path: Path) -> Any:
    async with live(tmp_path) as server:
        yield server


@pytest.mark.parametrize("name", ["-a", "a b", "x" * 101, "é"])
async def test_the_name_of_a_policy_is_plain(shared_server: Live, name: str) -> None:
    admin = await shared_server.token("admin")
    status, problem = await shared_server.ask("PUT", f"/api/policies/{name}", admin, json={"target": "echo"})
    assert (status, "`name` must be" in problem["detail"]) == (400, True)


async def test_only_admins_use_policies(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        for role in ("user", "reviewer"):
            token = await server.token(role)
            for method, path in (
                ("GET", "/api/policies"),
                ("GET", "/api/policies/one"),
                ("GET", "/api/policies/one/versions"),
                ("PUT", "/api/policies/one"),
                ("DELETE", "/api/policies/one"),
                ("POST", "/api/policies/one/dry-run"),
            ):
                json_body = {"target": "echo"} if method == "PUT" else None
                assert (await server.ask(method, path, token, json=json_body))[0] == 403


async def test_another_process_applies_a_policy_within_a_second(tmp_path: Path) -> None:
    async with live(tmp_path) as one, live(tmp_path) as two:
        admin, token = await one.token("admin"), await two.token()
        assert (await ask(two, token, "long text"))[0] == 200
        await one.ask("PUT", "/api/policies/one", admin, json={"target": "echo", "rules": RULES})

        async def is_held() -> bool | None:
            return (await ask(two, token, "long text"))[0] == 504 or None

        assert await until(is_held)


async def ask(server: Live, token: str, text: str) -> tuple[int, Any]:
    return await server.ask("POST", "/v1/chat/completions", token, json=chat(text), headers={"prefer": "wait=0"})


async def test_a_dry_run_counts_what_a_draft_would_have_said(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        admin, token = await server.token("admin"), await server.token()
        hold_all = {"target": "echo", "default": {"then": "hold"}}
        await server.ask("PUT", "/api/policies/one", admin, json=hold_all)
        for text in ("right", "to edit", "to reject", "waiting"):
            assert (await ask(server, token, text))[0] == 504
        held = {
            json.loads(job.body)["messages"][0]["content"]: job
            for job in await server.services.store.jobs.list(JobFilter(status="human"))
        }
        for text, request in (
            ("right", VerdictRequest(verdict="approve")),
            ("to edit", VerdictRequest(verdict="approve", edit=Edit(response='"edited"'))),
            ("to reject", VerdictRequest(verdict="reject", reason="wrong")),
        ):
            await decide(server.services, REVIEWER, held[text].id, request)
        await server.ask("DELETE", "/api/policies/one", admin)
        assert (await ask(server, token, "unseen"))[0] == 200
        draft = {
            "target": "echo",
            "rules": [
                {"if": 'answer.text == "unseen"', "then": "reject"},
                {"if": 'answer.text == "to reject" || answer.text == "waiting"', "then": "hold"},
                {"if": "signals.logprob_min == null", "then": "audit", "audit": 0.5},
            ],
        }
        status, result = await server.ask(
            "POST", "/api/policies/one/dry-run", admin, json={"last": 100, "policy": draft}
        )
        assert (status, result) == (
            200,
            {
                "policy": "one",
                "answers": 5,
                "examined": 5,
                "skipped": 0,
                "passed": 2,
                "audited": 2,
                "consulted": 0,
                "held": 2,
                "rejected": 1,
                "failed": 0,
                "rules": {"0": 1, "1": 2, "2": 2},
                "reviewed": 3,
                "wrong": 2,
                "wrong_passed": 1,
                "missing": {"signals.logprob_min": 2},
            },
        )
        _, last = await server.ask("POST", "/api/policies/one/dry-run", admin, json={"last": 2, "policy": draft})
        assert (last["answers"], last["rejected"], last["held"]) == (2, 1, 1)
        for each in (result, last):
            outcomes = ("passed", "consulted", "held", "rejected", "skipped")
            assert each["examined"] == sum(each[name] for name in outcomes)
        _, other = await server.ask(
            "POST", "/api/policies/one/dry-run", admin, json={"policy": draft | {"target": "other"}}
        )
        assert (other["answers"], other["examined"], other["skipped"]) == (0, 5, 5)
        for order, code in (({"last": 0, "policy": draft}, 400), ({"policy": {"target": "a*b"}}, 400), ({}, 404)):
            assert (await server.ask("POST", "/api/policies/one/dry-run", admin, json=order))[0] == code
