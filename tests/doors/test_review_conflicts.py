"""Verdicts that come late, at the same time as others, or are withdrawn, over HTTP."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from doors.test_bulk_page import held
from doors.test_reviews_door import Office, desk, ruled
from signoff.core.job import Job
from signoff.store import TransitionRequest
from signoff.stores.schema import jobs
from signoff.work.sweep import sweep
from support.live_server import live
from support.pages import signed_in
from support.stores import execute

pytestmark = pytest.mark.anyio


async def test_a_vote_on_an_answer_that_another_has_open_is_refused_with_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruled(monkeypatch, votes=2)
    async with desk(tmp_path) as it:
        job_id = await it.held()
        assert (await it.ask("ann", "POST", f"/{job_id}/open"))[0] == 200
        status, error = await it.decide("bob", job_id, "approve")
        assert (status, "ann@x.org has it open" in error["detail"]) == (409, True)


async def test_a_vote_after_the_last_one_is_refused_with_the_name_of_who_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruled(monkeypatch, votes=2)
    async with desk(tmp_path, release_after_seconds=3600) as it:
        job_id = await it.held()
        for name in ("ann", "bob"):
            assert (await it.decide(name, job_id, "approve"))[0] == 200
        for name in ("ann", "cyd"):
            status, error = await it.decide(name, job_id, "reject", reason="rude")
            assert (status, "bob@x.org decided: approve" in error["detail"]) == (409, True)
        # a new round has the same words for a vote on the earlier one
        assert (await it.ask("bob", "POST", f"/{job_id}/undo"))[0] == 200
        status, error = await it.decide("cyd", job_id, "approve")
        assert (status, "bob@x.org decided: approve; this is round 2, not 1" in error["detail"]) == (409, True)


ACTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "approve": ("decide", {"verdict": "approve"}, "decided: approve"),
    "approve edited": ("decide", {"verdict": "approve", "response": "Better"}, "decided: approve"),
    "send back": ("decide", {"verdict": "redo", "instruction": "Shorter."}, r"decided(?: in round 1)?: redo"),
    "save a draft": ("draft", {"response": "Better"}, "changed the draft"),
    "open": ("open", {}, "has it open"),
}


@pytest.mark.parametrize("release_after_seconds", [0, 3600])
@pytest.mark.parametrize("act", ACTS)
async def test_the_page_names_who_was_first(tmp_path: Path, act: str, release_after_seconds: int) -> None:
    path, body, words = ACTS[act]
    async with live(tmp_path, release_after_seconds=release_after_seconds) as server:
        job = await held(server)
        ann, bob = await signed_in(server, "reviewer", "ann"), await signed_in(server, "reviewer", "bob")
        page = await ann.open(f"/dashboard/review/{job.id}")
        form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
        await bob.api("POST", f"/api/reviews/{job.id}/{path}", json=({"round": 1} | body) if body else None)
        refused = await ann.submit("/dashboard/decide", status=409, **(form | {"answer": "x", "verdict": "approve"}))
        assert re.search(f"bob@example.com {words}", html.unescape(refused))


async def a_bulk(it: Office, verdict: str = "approve", **more: Any) -> tuple[str, list[str]]:
    """Select answers as ann for a bulk decision; return its path, and the ids of the jobs."""
    status, bulk = await it.ask("ann", "POST", "/bulk", {"verdict": verdict} | more)
    assert status == 201
    return f"/bulk/{bulk['id']}", [item["job_id"] for item in bulk["items"]]


@pytest.fixture(name="whole_bulks")
def select_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no random share out of bulk decisions."""
    monkeypatch.setattr("signoff.work.reviews.bulk.SINGLE_SHARE", 0.0)


@pytest.mark.usefixtures("whole_bulks")
@pytest.mark.parametrize("is_late", [False, True], ids=["before", "at the same moment"])
async def test_a_bulk_decision_drops_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_late: bool
) -> None:
    async with desk(tmp_path, release_after_seconds=3600) as it:
        job_id = await it.held()
        path, selected = await a_bulk(it)
        assert selected == [job_id]
        store, draft = it.server.services.store, {"round": 1, "response": "Better"}
        transition = store.jobs.transition

        async def transition_after_a_draft(job_id: str, *steps: TransitionRequest) -> Job:
            if steps[0].verb == "decide":
                monkeypatch.setattr(store.jobs, "transition", transition)
                assert (await it.ask("bob", "POST", f"/{job_id}/draft", draft))[0] == 200
            return await transition(job_id, *steps)

        if is_late:
            monkeypatch.setattr(store.jobs, "transition", transition_after_a_draft)
        else:
            assert (await it.ask("bob", "POST", f"/{job_id}/draft", draft))[0] == 200
        _, applied = await it.ask("ann", "POST", f"{path}/apply")
        assert (applied["decided"], applied["skipped"]) == (0, 1)
        reason = "it has changed since" if is_late else "bob@x.org saved a draft"
        assert reason in applied["items"][0]["message"]
        job = await store.jobs.get(job_id)
        assert (job.decision, job.draft.response) == (None, '"Better"')


@pytest.mark.usefixtures("whole_bulks")
async def test_a_bulk_undo_withdraws_only_what_the_bulk_decided(tmp_path: Path) -> None:
    async with desk(tmp_path, release_after_seconds=3600) as it:
        single, again, other = [await it.held() for _ in range(3)]
        _, bulk = await it.ask("ann", "POST", "/bulk", {"verdict": "approve"})
        path = f"/bulk/{bulk['id']}"
        # ann decides on the first by itself, and the bulk on the others
        assert (await it.decide("ann", single, "approve"))[0] == 200
        assert (await it.ask("ann", "POST", f"{path}/undo"))[0] == 409
        _, applied = await it.ask("ann", "POST", f"{path}/apply")
        assert {item["job_id"]: item["state"] for item in applied["items"]} == {
            single: "skipped",
            again: "decided",
            other: "decided",
        }
        # one of these is undone, and decided by a single verdict
        assert (await it.ask("ann", "POST", f"/{again}/undo"))[0] == 200
        assert (await it.decide("ann", again, "approve", round=2))[0] == 200
        _, undone = await it.ask("ann", "POST", f"{path}/undo")
        assert (undone["undone"], undone["decided"]) == (1, 1)
        decided = [await it.server.services.store.jobs.get(job_id) for job_id in (single, again, other)]
        assert [job.decision is not None for job in decided] == [True, True, False]


@pytest.mark.usefixtures("whole_bulks")
async def test_a_bulk_that_is_applied_and_undone_at_the_same_moment_tells_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, release_after_seconds=3600) as it:
        first, second = await it.held(), await it.held()
        path, _ = await a_bulk(it)
        store = it.server.services.store
        transition = store.jobs.transition

        async def transition_after_an_undo(job_id: str, *steps: TransitionRequest) -> Job:
            if job_id == second and steps[0].verb == "decide":
                monkeypatch.setattr(store.jobs, "transition", transition)
                assert (await it.ask("ann", "POST", f"{path}/undo"))[1]["undone"] == 1
            return await transition(job_id, *steps)

        monkeypatch.setattr(store.jobs, "transition", transition_after_an_undo)
        for _ in range(2):
            _, applied = await it.ask("ann", "POST", f"{path}/apply")
            states = {item["job_id"]: item["state"] for item in applied["items"]}
            assert states == {first: "undone", second: "decided"}
        decided = [await store.jobs.get(job_id) for job_id in (first, second)]
        assert [job.decision is not None for job in decided] == [False, True]


async def test_an_answer_comes_back_to_all_if_its_assignee_has_left_meanwhile(tmp_path: Path) -> None:
    async with desk(tmp_path, release_after_seconds=3600) as it:
        job_id, people = await it.held(), it.server.services.store.people
        assert (await it.ask("ada", "POST", f"/{job_id}/assign", {"assignee": "ann@x.org"}))[0] == 200
        assert (await it.decide("ann", job_id, "approve"))[0] == 200
        ann = await people.user("ann@x.org")
        await people.change_user(ann.id, active=False)
        assert (await it.ask("ada", "POST", f"/{job_id}/undo"))[0] == 200
        assert (await it.ask("bob", "POST", "/next", {}))[1]["job_id"] == job_id
        # so it does from the model, which it was sent back to
        assert (await it.ask("bob", "POST", f"/{job_id}/assign", {"assignee": "cyd@x.org"}))[0] == 200
        store = it.server.services.store.jobs
        job = await store.get(job_id)
        assert (await it.decide("cyd", job_id, "redo", round=job.round))[0] == 200
        cyd = await people.user("cyd@x.org")
        await people.change_user(cyd.id, role="user")
        await execute(it.server.services.store, sa.update(jobs).where(jobs.c.id == job_id).values(release_at=1))
        await sweep(it.server.services)
        await it.job(job_id, lambda job: job["status"] == "human" and job["round"] == 3)
        assert (await it.ask("bob", "POST", "/next", {}))[1]["job_id"] == job_id


async def pass_deadlines(it: Office) -> None:
    """Let the deadlines of all held answers be in the past."""
    has_deadline = jobs.c.review_deadline.is_not(None)
    await execute(it.server.services.store, sa.update(jobs).where(has_deadline).values(review_deadline=1))


@pytest.mark.parametrize(
    ("on_deadline", "reason"),
    [
        ("approve", "The job is success, not in review; policy decided: approve"),
        ("reject", "The job is fail, not in review; No reviewer decided before the deadline"),
    ],
)
async def test_a_verdict_after_a_deadline_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_deadline: str, reason: str
) -> None:
    ruled(monkeypatch, deadline_seconds=600, on_deadline=on_deadline)
    async with desk(tmp_path) as it:
        job_id = await it.held()
        await pass_deadlines(it)
        await sweep(it.server.services)
        status, error = await it.decide("ann", job_id, "approve")
        assert (status, reason in error["detail"]) == (409, True)


@pytest.mark.parametrize("on_deadline", ["approve", "reject"])
async def test_an_undo_gives_the_full_time_for_a_verdict_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_deadline: str
) -> None:
    monkeypatch.setattr("signoff.work.reviews.bulk.SINGLE_SHARE", 0.0)
    ruled(monkeypatch, deadline_seconds=600, on_deadline=on_deadline)
    async with desk(tmp_path, release_after_seconds=3600) as it:
        single = await it.held()
        assert (await it.decide("ann", single, "reject", reason="rude"))[0] == 200
        in_bulk = await it.held()
        _, bulk = await it.ask("ann", "POST", "/bulk", {"verdict": "approve"})
        assert (await it.ask("ann", "POST", f"/bulk/{bulk['id']}/apply"))[1]["decided"] == 1
        await pass_deadlines(it)
        assert (await it.ask("ann", "POST", f"/{single}/undo"))[0] == 200
        assert (await it.ask("ann", "POST", f"/bulk/{bulk['id']}/undo"))[1]["undone"] == 1
        await sweep(it.server.services)
        for job_id in (single, in_bulk):
            job = await it.server.services.store.jobs.get(job_id)
            assert (job.status, job.round, job.decision) == ("human", 2, None)
            assert job.review_deadline - job.updated_at == 600_000_000


async def test_an_undo_gives_no_deadline_to_an_answer_that_has_passed_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruled(monkeypatch, deadline_seconds=600, on_deadline="stay")
    async with desk(tmp_path, release_after_seconds=3600) as it:
        job_id = await it.held()
        await pass_deadlines(it)
        await sweep(it.server.services)
        assert (await it.decide("ann", job_id, "approve"))[0] == 200
        assert (await it.ask("ann", "POST", f"/{job_id}/undo"))[0] == 200
        assert (await it.server.services.store.jobs.get(job_id)).review_deadline is None
