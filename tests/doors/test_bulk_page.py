"""The page of bulk decisions, and the filters and the order of the queue on the desk."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from signoff.core.job import Job
from signoff.core.reviews.coin import Coin
from signoff.core.reviews.ruling import Ruling
from support.live_server import Live, live
from support.pages import Browser, signed_in, words
from support.stores import a_step, leased

pytestmark = pytest.mark.anyio
HOSTILE = "<img src=x onerror=alert(1)>\"'\u202e"


@pytest.fixture(name="server")
async def start_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    """Yield a server whose verdicts do not take effect during the test, and whose random share is none."""
    monkeypatch.setattr("signoff.work.reviews.bulk.SINGLE_SHARE", 0.0)
    async with live(tmp_path, release_after_seconds=3600) as server:
        yield server


async def held(server: Live, text: str = "question", **more: Any) -> Job:
    """Return a held job."""
    store, changes = server.services.store, {"response": json.dumps({"answer": text}).encode()}
    changes |= {name: more.pop(name) for name in ("ruling", "review_queue", "assignee") if name in more}
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": text}]}).encode()
    job = await leased(store, body=body, user_id=1000, **more)
    return await store.jobs.transition(job.id, a_step("hold", changes=changes, after_seconds={"held_at": 0.0}))


def ruled(policy: str, **more: Any) -> Ruling:
    return Ruling(outcome="hold", policy=policy, version=1, **more)


async def states(server: Live, jobs: list[Job]) -> list[str | None]:
    """Return the verdict on each job."""
    current = [await server.services.store.jobs.get(job.id) for job in jobs]
    return [job.decision.verdict if job is not None and job.decision is not None else None for job in current]


def listed(page: str) -> list[str]:
    """Return the ids of the jobs in the list of the queue."""
    return re.findall(r'<li id="q-([^"]+)"', page)


async def test_answers_are_selected_by_policy_rejected_with_one_reason_and_undone(server: Live) -> None:
    chosen = [await held(server, f"{HOSTILE} {number}", ruling=ruled("tone")) for number in range(3)]
    others = [await held(server, ruling=ruled("law")), await held(server)]
    audited = await held(server, ruling=ruled("tone", coin=Coin(value=0.01, look_rate=0.1)))
    voted = await held(server, ruling=ruled("tone", votes=2))
    ann = await signed_in(server, "reviewer", "ann")

    # nothing is rejected without a reason
    form = {"verdict": "reject", "policy": "tone"}
    refused = await ann.submit("/dashboard/review/bulk", status=400, **form)
    assert "`reason` is needed" in refused

    # the preview has the count of what is decided, and nothing of an audit
    address = await ann.submit("/dashboard/review/bulk", reason="Rude <b>", **form)
    page = await ann.open(address)
    assert "<h1>3 answers selected</h1>" in page
    assert audited.id not in page
    assert voted.id not in page
    assert "<img" not in page
    assert "Rude &lt;b&gt;" in page
    every = [*chosen, *others, audited, voted]
    assert await states(server, every) == [None] * 7

    assert await ann.submit(f"{address}/apply") == address
    assert "<h1>3 answers rejected</h1>" in await ann.open(address)
    assert await states(server, every) == [*["reject"] * 3, *[None] * 4]
    history = await ann.api("GET", "/api/reviews/history")
    assert {(each["job_id"], each["decision"]["reason"]) for each in history["data"]} == {
        (job.id, "Rude <b>") for job in chosen
    }

    assert await ann.submit(f"{address}/undo") == address
    assert "3 undone" in words(await ann.open(address))
    assert await states(server, every) == [None] * 7


async def test_what_another_has_decided_meanwhile_is_left_out_with_the_reason(server: Live) -> None:
    jobs = [await held(server, f"{number}", target="cat") for number in range(2)]
    ann, bob = await signed_in(server, "reviewer", "ann"), await signed_in(server, "reviewer", "bob")
    address = await ann.submit("/dashboard/review/bulk", verdict="approve", target="cat")
    verdict = {"verdict": "reject", "round": jobs[0].round, "reason": "no"}
    await bob.api("POST", f"/api/reviews/{jobs[0].id}/decide", json=verdict)
    await ann.submit(f"{address}/apply")
    page = words(await ann.open(address))
    assert "1 answer approved" in page
    assert "1 left out" in page
    assert "bob@example.com decided: reject" in page
    assert await states(server, jobs) == ["reject", "approve"]
    # the selection is of its reviewer alone
    await bob.open(address, status=404)
    await bob.submit(f"{address}/undo", status=404)


async def test_a_selection_without_answers_says_what_to_do(server: Live) -> None:
    ann = await signed_in(server, "reviewer", "ann")
    page = await ann.open(await ann.submit("/dashboard/review/bulk", verdict="approve", target="none"))
    assert "No answer was selected" in page
    assert "Choose again" in page


async def test_only_who_may_review_selects(server: Live) -> None:
    user = await signed_in(server, "user", "una")
    await user.open("/dashboard/review/bulk", status=403)
    await user.submit("/dashboard/review/bulk", status=403, verdict="approve")
    reviewer = await signed_in(server, "reviewer", "ann")
    foreign = {"sec-fetch-site": "cross-site"}
    for path in ("", "/1", "/1/apply", "/1/undo"):
        if path != "/1":
            await reviewer.submit(f"/dashboard/review/bulk{path}", status=403, headers=foreign, verdict="approve")


async def test_the_queue_is_filtered_and_sorted_and_the_next_answer_is_of_the_same_view(server: Live) -> None:
    old, other = await held(server, target="cat"), await held(server, target="dog")
    new, mine = await held(server, target="cat"), await held(server, assignee="ann@example.com")
    ann = await signed_in(server, "reviewer", "ann")

    assert listed(await ann.open("/dashboard/review?order=newest"))[-1] == old.id
    assert listed(await ann.open("/dashboard/review?mine=yes")) == [mine.id]
    assert listed(await ann.open("/dashboard/review?target=cat&order=newest")) == [new.id, old.id]
    assert "No held answer matches." in await ann.open("/dashboard/review?age=86400")

    view = {"target": "cat", "order": "newest"}
    address = await ann.submit("/dashboard/review/next", **view)
    assert address == f"/dashboard/review/{new.id}?target=cat&order=newest"
    assert await ann.submit(f"/dashboard/review/{new.id}/skip", **view) == (
        f"/dashboard/review/{old.id}?target=cat&order=newest&skip={new.id}"
    )
    assert other.id not in await ann.open(address)


async def test_a_long_queue_has_pages(server: Live) -> None:
    jobs = [await held(server, str(number)) for number in range(35)]
    ann: Browser = await signed_in(server, "reviewer", "ann")
    first = await ann.open("/dashboard/review?order=oldest")
    [more] = re.findall(r'href="([^"]+after=[^"]+)">More', first)
    second = await ann.open(more.replace("&amp;", "&"))
    assert listed(first) + listed(second) == [job.id for job in jobs]
    assert "More</a>" not in second
    await ann.open("/dashboard/review?after=nonsense", status=400)


async def test_answers_are_selected_by_their_signals_however_many_others_are_held(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signoff.work.reviews.bulk.PAGE", 2)
    values: list[dict[str, Any]] = [
        {"signals.judge": 0.95, "signals.schema_ok": True},
        {"signals.judge": 0.95, "signals.schema_ok": False},
        {"signals.judge": 0.5, "signals.schema_ok": True},
        {"signals.judge": None, "signals.schema_ok": True},
        {"answer.length": 3},
    ]
    jobs = [await held(server, str(each), ruling=ruled("tone", signals=each)) for each in values]
    ann = await signed_in(server, "reviewer", "ann")
    form = {"signal": "signals.judge", "comparison": "at_least", "value": "0.9", "verdict": "approve"}
    refused = await ann.submit("/dashboard/review/bulk", status=400, **(form | {"value": "high <b>"}))
    assert "must be a number" in refused
    assert 'value="high &lt;b&gt;"' in refused
    more = {"signal_2": "signals.schema_ok", "comparison_2": "equals", "value_2": "true"}
    page = await ann.open(await ann.submit("/dashboard/review/bulk", **form, **more))
    assert [job.id in page for job in jobs] == [True, False, False, False, False]

    async def chosen(*signals: dict[str, Any]) -> list[bool]:
        wanted = {"verdict": "approve", "signals": signals}
        bulk = await ann.api("POST", "/api/reviews/bulk", status=201, json=wanted)
        assert (bulk["examined"], bulk["is_whole"]) == (5, True)
        ids = {item["job_id"] for item in bulk["items"]}
        return [job.id in ids for job in jobs]

    assert await chosen({"name": "signals.judge"}) == [True, True, True, False, False]
    assert await chosen({"name": "answer.length", "equals": 3}) == [False, False, False, False, True]
    assert await chosen({"name": "signals.judge", "at_least": 0.4, "at_most": 0.6}) == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert await chosen({"name": "signals.schema_ok", "equals": 1}) == [False] * 5

    monkeypatch.setattr("signoff.work.reviews.bulk.MAX_EXAMINED", 2)
    none = await ann.submit(
        "/dashboard/review/bulk", signal="answer.length", comparison="equals", value="3", verdict="approve"
    )
    assert "None of the first 2 held answers matches" in words(await ann.open(none))


async def test_an_answer_is_handed_over_and_the_verdicts_of_the_past_are_listed(server: Live) -> None:
    ada = await signed_in(server, "admin", "ada")
    ann, bob = await signed_in(server, "reviewer", "ann"), await signed_in(server, "reviewer", "bob")
    await ada.api("PUT", "/api/review-queues/law", json={"members": ["bob@example.com"]})
    first, second, third = [await held(server, f"{HOSTILE} {number}") for number in range(3)]
    move = f"/dashboard/review/{first.id}/move"
    await ann.submit(move, status=400)
    assert '<option value="law">' in await bob.open(f"/dashboard/review/{first.id}")
    location = await ann.submit(move, to_queue="law", why="A claim.", target="echo")
    assert location == f"/dashboard/review/{second.id}?target=echo"
    await ann.submit(f"/dashboard/review/{second.id}/move", assignee="bob@example.com")
    reviews = {each["job_id"]: each for each in (await ada.api("GET", "/api/reviews"))["data"]}
    assert reviews[first.id]["queue"] == "law"
    assert reviews[second.id]["assignee"] == "bob@example.com"
    await bob.submit(f"/dashboard/review/{first.id}/move", to_queue="all reviewers")

    assert "You have not decided" in await ann.open("/dashboard/review/history")
    await ann.api("POST", f"/api/reviews/{third.id}/decide", json={"verdict": "reject", "reason": "<b>no", "round": 1})
    await ada.api("POST", f"/api/reviews/{third.id}/undo")
    await ada.api("POST", f"/api/reviews/{third.id}/decide", json={"verdict": "approve", "round": 2})
    page = await ann.open("/dashboard/review/history")
    assert "<img" not in page
    assert "Rejected &lt;b&gt;no you decided Approved round 2, ada@example.com In review" in words(page)
    await ann.open("/dashboard/review/history?after=x", status=400)


async def test_the_queue_shows_the_same_signal_of_all_answers(server: Live) -> None:
    await held(server, "one", ruling=ruled("tone", signals={"signals.judge": 0.98765, "answer.length": 3}))
    await held(server, "two", ruling=ruled("tone", signals={"answer.length": 4}))
    page = await (await signed_in(server, "reviewer", "ann")).open("/dashboard/review")
    assert re.findall(r'class="q-sig">(.*?)</span> *([^<]*)</span>', page) == [('<span class="mono">judge', "0.988")]
