"""The review desk over HTTP: who gets which answer, who may decide, and what becomes of a verdict."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from signoff.core.access import Role
from signoff.core.job import Job
from signoff.core.reviews.policy import Escalation
from signoff.core.reviews.ruling import Ruling
from signoff.runtime.attempt import Attempt
from signoff.store import TransitionRequest
from signoff.work import attempt
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio


class Office:
    """A server, and its users by name: the user `ursula`, the reviewers `ann`, `bob` and `cyd`, and the admin `ada`."""

    def __init__(self, server: Live, tokens: dict[str, str]) -> None:
        self.server = server
        self.tokens = tokens

    async def ask(self, name: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request to `/api/reviews` as this user; return the status and the response."""
        return await self.server.ask(method, f"/api/reviews{path}", self.tokens[name], json=body)

    async def held(self, text: str = "Hello", name: str = "ursula", **more: Any) -> str:
        """Ask as this user for an answer that is held, and return the id of its job."""
        body = chat(text, **more)
        _, job = await self.server.ask("POST", "/enqueue", self.tokens[name], json=body)
        await self.job(job["job_id"], lambda job: job["status"] == "human")
        return job["job_id"]

    async def job(self, job_id: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the job as soon as `holds` is true for it."""
        return await self.server.job_when(self.tokens["ada"], job_id, holds)

    async def decide(self, name: str, job_id: str, verdict: str, **more: Any) -> tuple[int, Any]:
        """Decide in round 1, unless `more` names another one."""
        return await self.ask(name, "POST", f"/{job_id}/decide", {"round": 1, "verdict": verdict} | more)


@asynccontextmanager
async def desk(tmp_path: Path, **settings: Any) -> AsyncIterator[Office]:
    """Yield a server with users, whose verdicts take effect at once unless `settings` say otherwise."""
    people: dict[str, Role] = {
        "ursula": "user",
        **dict.fromkeys(("ann", "bob", "cyd"), "reviewer"),
        "ada": "admin",
    }
    usual: dict[str, Any] = {"release_after_seconds": 0, "allow_self_review": None}
    async with live(tmp_path, **(usual | settings)) as server:
        yield Office(server, {name: await server.token(role, f"{name}@x.org") for name, role in people.items()})


def ruled(monkeypatch: pytest.MonkeyPatch, **ruling: Any) -> None:
    """Let every answer be held with this ruling."""

    async def judge(_services: Any, judged: Attempt, *_: Any) -> None:
        judged.job = msgspec.structs.replace(judged.job, ruling=Ruling(outcome="hold", **ruling))

    monkeypatch.setattr(attempt, "judge", judge)


async def test_a_reviewer_takes_an_answer_sees_all_of_it_and_approves_it(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        messages = [{"role": "system", "content": "Never promise."}, {"role": "user", "content": "May I?"}]
        body = {"model": "echo", "messages": messages}
        _, job = await it.server.ask("POST", "/enqueue", it.tokens["ursula"], json=body)
        await it.job(job["job_id"], lambda job: job["status"] == "human")

        status, item = await it.ask("ann", "POST", "/next", {})

        assert (status, item["job_id"], item["opened_by"]) == (200, job["job_id"], "ann@x.org")
        assert [entry["text"] for entry in item["transcript"]] == ["Never promise.", "May I?"]
        assert (item["answer"], item["user"], item["round"]) == ("May I?", "ursula@x.org", 1)
        assert {"ruling", "policy", "rule", "audit"} & item.keys() == set()
        assert await it.ask("bob", "POST", "/next") == (204, "")
        status, error = await it.decide("bob", job["job_id"], "approve")
        assert (status, "ann@x.org has it open" in error["detail"]) == (409, True)
        assert (await it.decide("ann", job["job_id"], "approve"))[0] == 200
        assert (await it.job(job["job_id"], lambda job: True))["status"] == "success"


async def test_an_answer_that_is_left_goes_to_the_next_reviewer(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        job_id = await it.held()
        await it.ask("ann", "POST", "/next", {})
        assert (await it.ask("bob", "POST", f"/{job_id}/renew"))[0] == 409
        assert (await it.ask("ann", "POST", f"/{job_id}/renew"))[0] == 200
        # as a page sends it when it closes
        headers = {"content-type": "text/plain;charset=UTF-8"}
        status, _ = await it.server.ask(
            "POST", f"/api/reviews/{job_id}/leave", it.tokens["ann"], data=b"", headers=headers
        )
        assert status == 204
        assert (await it.ask("bob", "POST", "/next", {"skip": [job_id]}))[0] == 204
        assert (await it.ask("bob", "POST", "/next", {}))[1]["job_id"] == job_id


async def test_a_draft_is_kept_and_is_what_an_approval_sends(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        job_id = await it.held()
        assert (await it.ask("ann", "POST", f"/{job_id}/draft", {"round": 1, "response": "Better"}))[0] == 200
        _, item = await it.ask("ann", "GET", f"/{job_id}")
        assert (item["answer"], item["draft_answer"], item["draft"]["response"]) == ("Hello", "Better", "Better")
        status, error = await it.decide("bob", job_id, "approve")
        assert (status, "Another reviewer saved a draft" in error["detail"]) == (409, True)
        assert (await it.decide("ann", job_id, "approve"))[0] == 200
        job = await it.job(job_id, lambda job: job["status"] == "success")
        assert job["response"]["choices"][0]["message"]["content"] == "Better"


async def test_an_answer_is_sent_back_with_an_instruction_and_another_model(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        job_id = await it.held("One")
        await it.server.model("other", review="always")
        payload = chat("Two", model="other")
        assert (await it.decide("ann", job_id, "redo", instruction="Shorter.", payload=payload))[0] == 200
        job = await it.job(job_id, lambda job: job["status"] == "human" and job["round"] == 2)
        assert [each["content"] for each in job["payload"]["messages"]] == ["Two", "One", "Shorter."]
        assert job["payload"]["messages"][1]["role"] == "assistant"
        assert job["model"] == "other"
        _, error = await it.decide("ann", job_id, "approve")
        assert "ann@x.org decided: redo; this is round 2" in error["detail"]


async def test_a_verdict_can_be_undone_until_it_takes_effect(tmp_path: Path) -> None:
    async with desk(tmp_path, release_after_seconds=3600) as it:
        job_id = await it.held()
        _, state = await it.decide("ann", job_id, "reject", reason="rude")
        assert (state["status"], state["decision"]["verdict"]) == ("human", "reject")
        assert (await it.ask("bob", "POST", f"/{job_id}/undo"))[0] == 403
        status, error = await it.decide("bob", job_id, "approve")
        assert (status, "ann@x.org decided: reject" in error["detail"]) == (409, True)
        assert (await it.ask("ann", "POST", f"/{job_id}/undo"))[1]["round"] == 2
        status, error = await it.decide("bob", job_id, "approve")
        assert (status, "this is round 2, not 1" in error["detail"]) == (409, True)
        assert (await it.decide("bob", job_id, "approve", round=2))[0] == 200
        _, history = await it.ask("ann", "GET", "/history")
        [mine] = history["data"]
        assert (mine["verdict"], mine["round"], mine["decision"]["reason"]) == ("reject", 1, "rude")
        [change] = mine["changed_afterwards"]
        assert (change["reviewer"], change["verdict"]) == ("bob@x.org", "approve")


async def test_a_verdict_on_the_desk_waits_five_seconds_and_one_of_the_first_api_none(tmp_path: Path) -> None:
    async with desk(tmp_path, release_after_seconds=None) as it:
        first, second = await it.held(), await it.held()
        _, state = await it.decide("ann", first, "approve")
        assert state["status"] == "human"
        body = {"id": second, "status": "success"}
        await it.server.ask("POST", "/reviewJob", it.tokens["ann"], json=body)
        assert (await it.job(second, lambda job: True))["status"] == "success"
        assert (await it.job(first, lambda job: job["status"] != "human"))["status"] == "success"


async def test_a_late_verdict_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with desk(tmp_path, review_deadline_seconds=None) as it:
        job_id = await it.held()
        await it.server.ask("DELETE", f"/api/jobs/{job_id}", it.tokens["ursula"])
        status, error = await it.decide("ann", job_id, "approve")
        assert (status, "not in review" in error["detail"], "Cancelled by ursula" in error["detail"]) == (
            409,
            True,
            True,
        )
        other = await it.held()
        await it.decide("bob", other, "approve")
        status, error = await it.decide("ann", other, "reject", reason="no")
        assert (status, "bob@x.org decided: approve" in error["detail"]) == (409, True)


async def test_nobody_decides_on_what_they_asked_for(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        for name in ("ann", "ada"):
            job_id = await it.held(name=name)
            status, error = await it.decide(name, job_id, "approve")
            assert (status, "allow_self_review" in error["detail"]) == (403, True)
            assert (await it.ask(name, "POST", "/next", {}))[0] == 204
            _, bulk = await it.ask(name, "POST", "/bulk", {"verdict": "approve"})
            assert bulk["count"] == 0
            body = {"id": job_id, "status": "success"}
            assert (await it.server.ask("POST", "/reviewJob", it.tokens[name], json=body))[0] == 403
            assert (await it.decide("bob", job_id, "approve"))[0] == 200


async def test_they_do_if_the_setting_allows_it_or_if_nobody_else_could(tmp_path: Path) -> None:
    async with desk(tmp_path / "one", allow_self_review=True) as it:
        assert (await it.decide("ann", await it.held(name="ann"), "approve"))[0] == 200
    async with live(tmp_path / "two", allow_self_review=None) as server:
        alone = Office(server, {"ada": await server.token("admin", "ada@x.org")})
        assert (await alone.decide("ada", await alone.held(name="ada"), "approve"))[0] == 200
        await server.token("reviewer", "ann@x.org")
        assert (await alone.decide("ada", await alone.held(name="ada"), "approve"))[0] == 403
    async with live(tmp_path / "three", allow_self_review=False) as server:
        alone = Office(server, {"ada": await server.token("admin", "ada@x.org")})
        assert (await alone.decide("ada", await alone.held(name="ada"), "approve"))[0] == 403


async def test_a_queue_is_for_its_members_and_admins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ruled(monkeypatch, queue="legal")
    async with desk(tmp_path) as it:
        queue = {"members": ["ann@x.org"]}
        assert (await it.server.ask("PUT", "/api/review-queues/legal", it.tokens["ada"], json=queue))[0] == 200
        job_id = await it.held()
        assert (await it.ask("bob", "POST", "/next", {}))[0] == 204
        assert (await it.ask("bob", "POST", "/next", {"queue": "legal"}))[0] == 403
        assert (await it.ask("bob", "GET", f"/{job_id}"))[0] == 403
        assert (await it.decide("bob", job_id, "approve"))[0] == 403
        assert (await it.ask("bob", "GET", ""))[1]["data"] == []
        assert [each["job_id"] for each in (await it.ask("ada", "GET", ""))[1]["data"]] == [job_id]
        assert [each["queue"] for each in (await it.ask("ann", "GET", "/stats"))[1]["data"]] == ["", "legal"]
        assert (await it.ask("ann", "POST", "/next", {"queue": "legal"}))[1]["job_id"] == job_id


async def test_an_answer_is_escalated_and_assigned(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        for name, members in (("chief", ["cyd@x.org"]), ("empty", [])):
            await it.server.ask("PUT", f"/api/review-queues/{name}", it.tokens["ada"], json={"members": members})
        job_id = await it.held()
        assert (await it.ask("ann", "POST", f"/{job_id}/escalate", {"queue": "none"}))[0] == 400
        assert (await it.ask("ann", "POST", f"/{job_id}/escalate", {"queue": "chief", "reason": "law"}))[0] == 200
        assert (await it.decide("ann", job_id, "approve"))[0] == 403
        status, error = await it.ask("ada", "POST", f"/{job_id}/assign", {"assignee": "bob@x.org"})
        assert (status, "does not belong" in error["detail"]) == (400, True)
        assert (await it.ask("ada", "POST", f"/{job_id}/assign", {"assignee": "ursula@x.org"}))[0] == 400
        assert (await it.ask("ada", "POST", f"/{job_id}/assign", {"assignee": "Bob@x.org", "queue": ""}))[0] == 200
        assert (await it.ask("cyd", "POST", "/next", {}))[0] == 204
        assert (await it.ask("bob", "POST", "/next", {}))[1]["assignee"] == "bob@x.org"


async def test_a_deadline_escalates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ruled(monkeypatch, deadline_seconds=0.5, on_deadline=Escalation("chief"))
    async with desk(tmp_path) as it:
        await it.server.ask("PUT", "/api/review-queues/chief", it.tokens["ada"], json={"members": ["cyd@x.org"]})
        job_id = await it.held()

        async def escalated() -> dict[str, Any] | None:
            status, item = await it.ask("cyd", "POST", "/next", {"queue": "chief"})
            return item if status == 200 else None

        item = await until(escalated)
        assert (item["job_id"], item["queue"], item["deadline"]) == (job_id, "chief", None)


async def test_two_votes_that_agree_decide_and_are_blind_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruled(monkeypatch, votes=2)
    async with desk(tmp_path) as it:
        job_id = await it.held()
        await it.ask("ann", "POST", f"/{job_id}/draft", {"round": 1, "response": "Secret"})
        assert (await it.ask("bob", "GET", f"/{job_id}"))[1]["draft"] is None
        assert (await it.decide("ann", job_id, "reject", reason="rude"))[1]["status"] == "human"
        assert (await it.decide("ann", job_id, "reject", reason="rude"))[0] == 409
        _, item = await it.ask("bob", "GET", f"/{job_id}")
        assert (item["votes_needed"], item["votes_cast"], item["votes"], item["draft"]) == (2, 1, [], None)
        _, events = await it.server.ask("GET", f"/api/jobs/{job_id}/events", it.tokens["bob"])
        assert "rude" not in str(events)
        assert (await it.decide("bob", job_id, "reject", reason="wrong"))[1]["status"] == "fail"
        assert (await it.job(job_id, lambda job: True))["error"]["message"] == "wrong"


async def test_votes_that_disagree_go_to_a_third_reviewer_who_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruled(monkeypatch, votes=2)
    async with desk(tmp_path) as it:
        job_id = await it.held()
        results = await asyncio.gather(
            it.decide("ann", job_id, "approve"), it.decide("bob", job_id, "reject", reason="rude")
        )
        assert [status for status, _ in results] == [200, 200]
        assert (await it.ask("ann", "POST", "/next", {}))[0] == 204
        _, item = await it.ask("cyd", "POST", "/next", {})
        assert {(vote["reviewer"], vote["verdict"]) for vote in item["votes"]} == {
            ("ann@x.org", "approve"),
            ("bob@x.org", "reject"),
        }
        assert (await it.decide("cyd", job_id, "approve"))[1]["status"] == "success"
        assert (await it.ask("ada", "GET", "/agreement"))[1] == {"items": 1, "raw": 0.0, "kappa": 0.0}


async def test_a_bulk_decision_is_previewed_applied_once_and_undone(tmp_path: Path) -> None:
    async with desk(tmp_path, release_after_seconds=3600) as it:
        jobs = [await it.held(f"Hello {number}") for number in range(12)]
        await it.ask("bob", "POST", f"/{jobs[0]}/open")
        status, bulk = await it.ask("ann", "POST", "/bulk", {"verdict": "approve", "target": "echo"})
        selected = [item["job_id"] for item in bulk["items"]]
        assert (status, bulk["count"], jobs[0] in selected) == (201, len(selected), False)
        assert 0 < len(selected) <= 11
        later = await it.held("Later")
        assert (await it.decide("cyd", selected[0], "reject", reason="no"))[0] == 200
        assert (await it.ask("bob", "POST", f"/bulk/{bulk['id']}/apply"))[0] == 404
        _, applied = await it.ask("ann", "POST", f"/bulk/{bulk['id']}/apply")
        assert (applied["decided"], applied["skipped"]) == (len(selected) - 1, 1)
        assert "cyd@x.org decided: reject" in applied["items"][0]["message"]
        assert later not in selected
        _, history = await it.ask("ann", "GET", "/history?limit=200")
        assert len(history["data"]) == len(selected) - 1
        assert (await it.ask("ann", "POST", f"/bulk/{bulk['id']}/apply"))[1] == applied
        _, undone = await it.ask("ann", "POST", f"/bulk/{bulk['id']}/undo")
        assert undone["undone"] == len(selected) - 1
        _, page = await it.ask("ann", "GET", "")
        assert {item["round"] for item in page["data"] if item["job_id"] in selected} == {2}


async def test_a_bulk_decision_that_was_cut_off_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(tmp_path, release_after_seconds=3600) as it:
        for number in range(12):
            await it.held(f"Hello {number}")
        _, bulk = await it.ask("ann", "POST", "/bulk", {"verdict": "approve"})
        path, selected = f"/bulk/{bulk['id']}", {item["job_id"] for item in bulk["items"]}
        assert len(selected) > 2
        assert (await it.ask("ann", "POST", f"{path}/undo"))[0] == 409
        # given a process that ends when it has decided on two of them
        services, number = it.server.services, itertools.count(1)
        transition = services.store.jobs.transition

        async def transition_until_the_end(job_id: str, *steps: TransitionRequest) -> Job:
            if steps[0].verb == "decide" and next(number) > 2:
                raise RuntimeError("killed")
            return await transition(job_id, *steps)

        monkeypatch.setattr(services.store.jobs, "transition", transition_until_the_end)
        assert (await it.ask("ann", "POST", f"{path}/apply"))[0] == 500
        # then these two are undone, and none is decided
        _, undone = await it.ask("ann", "POST", f"{path}/undo")
        assert (undone["undone"], undone["decided"]) == (2, 0)
        _, page = await it.ask("ann", "GET", "")
        assert sorted(item["round"] for item in page["data"]) == [1] * 10 + [2] * 2


async def test_reasons_are_kept_by_admins_and_a_rejection_needs_one(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        path, reasons = "/api/review-reasons", {"reasons": ["wrong", " rude "]}
        assert (await it.server.ask("PUT", path, it.tokens["ann"], json=reasons))[0] == 403
        assert (await it.server.ask("PUT", path, it.tokens["ada"], json=reasons))[0] == 200
        assert (await it.server.ask("GET", path, it.tokens["ann"]))[1] == {"reasons": ["wrong", "rude"]}
        job_id = await it.held()
        for reason in (None, "", "  "):
            assert (await it.decide("ann", job_id, "reject", reason=reason))[0] == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/decide", {"verdict": "approve"}),
        ("/decide", {"verdict": "maybe", "round": 1}),
        ("/decide", {"verdict": "approve", "round": -1}),
        ("/decide", {"verdict": "approve", "round": 10**12}),
        ("/decide", {"verdict": "approve", "round": 1, "instruction": "x"}),
        ("/decide", {"verdict": "redo", "round": 1, "instruction": "x" * 20_001}),
        ("/decide", {"verdict": "approve", "round": 1, "extra": 1}),
        ("/draft", {}),
        ("/escalate", {}),
        ("/escalate", {"queue": ""}),
        ("/assign", {"assignee": "nobody@x.org"}),
        ("/assign", {"queue": "none"}),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_input_is_a_400(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    async with desk(tmp_path) as it:
        job_id = await it.held()
        assert (await it.ask("ann", "POST", f"/{job_id}{path}", body))[0] == 400
        assert (await it.decide("ann", job_id, "approve"))[0] == 200


async def test_lists_and_queues_refuse_bad_input(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        for query in ("after=x", "limit=0", "limit=1000", "min_age_seconds=-1"):
            assert (await it.ask("ann", "GET", f"?{query}"))[0] == 400, query
        assert (await it.ask("ann", "POST", "/next", {"skip": ["x"] * 201}))[0] == 400
        for name, body in [
            ("-x", {}),
            ("x", {"members": ["ursula@x.org"]}),
            ("x", {"members": ["nobody@x.org"]}),
            ("x", {"emails": ["no address"]}),
            ("x", {"digest_seconds": 0}),
            ("x", {"webhook": {"url": "http://127.0.0.1/"}}),
            ("x", {"webhook": {"url": "https://example.com/"}}),
        ]:
            status, _ = await it.server.ask("PUT", f"/api/review-queues/{name}", it.tokens["ada"], json=body)
            assert status in {400, 403}, body
        assert (await it.server.ask("DELETE", "/api/review-queues/x", it.tokens["ada"]))[0] == 404
