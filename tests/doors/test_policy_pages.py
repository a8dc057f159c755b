"""The pages of review policies and of error budgets."""

from __future__ import annotations

import html
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from signoff.dashboard.policies import MAX_LISTED
from support.live_server import Live, chat, live, until
from support.pages import Browser, cells, expected_of, signed_in, words

pytestmark = pytest.mark.anyio
POLICY = {"target": "careful", "rules": [{"if": "answer.text.contains('bad')", "then": "hold"}]}
BUDGET = {"answers": 10_000, "share": 0.02, "confidence": 0.95, "audit_rate": 0.1}


@pytest.fixture(scope="module", name="server")
async def start_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live(tmp_path_factory.mktemp("policies"), hold_seconds=0.01, release_after_seconds=0) as server:
        yield server


async def saved(admin: Browser, name: str, **more: object) -> None:
    """Save a policy of a target of its own, on the page of policies."""
    policy = POLICY | {"target": f"{name}-model"} | more
    location = await admin.submit("/dashboard/policies", name=name, body=json.dumps(policy))
    assert location == f"/dashboard/policies/{name}"
    await admin.server.model(f"{name}-model")


async def test_a_policy_is_saved_changed_compared_and_deleted_on_its_pages(server: Live) -> None:
    admin = await signed_in(server, "admin", "maker")
    await saved(admin, "first")
    assert (await admin.api("GET", "/api/policies/first"))["rules"] == [POLICY["rules"][0]]

    changed = POLICY | {"target": "first-model", "default": {"then": "reject", "code": "no"}}
    await admin.change("/dashboard/policies/first", body=json.dumps(changed))
    api = await admin.api("GET", "/api/policies/first")
    assert (api["version"], api["default"]) == (2, {"then": "reject", "code": "no"})

    page = await admin.open("/dashboard/policies/first")
    assert "reject as no" in page
    assert "<ins>    &#34;then&#34;: &#34;reject&#34;," in page
    assert "<del>    &#34;then&#34;: &#34;pass&#34;" in page
    assert "earlier version" in await admin.open("/dashboard/policies/first?version=1")

    assert await admin.submit("/dashboard/policies/first/delete") == "/dashboard/policies"
    await admin.api("GET", "/api/policies/first", status=404)
    assert ">deleted<" in await admin.open("/dashboard/policies/first")


async def test_the_text_that_was_saved_is_shown_so_that_saving_it_again_changes_nothing(server: Live) -> None:
    admin = await signed_in(server, "admin", "again")
    rule = {
        "if": "cost > 0.5",
        "then": "hold",
        "queue": "law",
        "deadline_seconds": 60,
        "on_deadline": {"escalate": "b"},
    }
    more = {"rules": [rule], "judge": "judge_prompt", "default": {"then": "audit", "audit": 0.25}}
    await saved(admin, "equal", budget=BUDGET | {"harmless": ["case"]}, **(more | {"default": {"then": "pass"}}))
    before = await admin.api("GET", "/api/policies/equal")
    page = await admin.open("/dashboard/policies/equal")
    text = page.partition('spellcheck="false">\n')[2].partition("</textarea>")[0].replace("&#34;", '"')
    await admin.change("/dashboard/policies/equal", body=text.replace("&gt;", ">"))
    after = await admin.api("GET", "/api/policies/equal")
    assert {**before, "version": 2, "created_at": after["created_at"]} == after


@pytest.mark.parametrize(
    ("body", "place", "fault"),
    [
        ('{\n  "target": "x",\n  "rules": [}', "Line 3, column 13", "not JSON"),
        ('{"target": "x",\n "rules": [{"if": "true", "then": "drop"}]}', "Line 2, column 35", "drop"),
        ('{"target": "x",\n "rules": [\n  {"if": "answer.nothing", "then": "hold"}]}', "Line 3, column 10", "nothing"),
        (
            '{"target": "x",\n "budget": {"answers": 0, "share": 0.1, "audit_rate": 0.1}}',
            "Line 2, column 24",
            "answers",
        ),
    ],
)
async def test_a_fault_is_shown_with_its_line_and_column_and_the_text_stays(
    server: Live, body: str, place: str, fault: str
) -> None:
    admin = await signed_in(server, "admin", "faulty")
    page = await admin.submit("/dashboard/policies", status=400, name="broken", body=body)
    alert = words(page.partition('role="alert">')[2].partition("</p>")[0])
    assert alert.startswith(place), alert
    assert fault in alert
    assert body.replace('"', "&#34;") in page
    assert 'value="broken"' in page
    await admin.api("GET", "/api/policies/broken", status=404)


async def test_an_open_page_does_not_revert_what_another_admin_saved_meanwhile(server: Live) -> None:
    ann, ben = await signed_in(server, "admin", "ann"), await signed_in(server, "admin", "ben")
    await saved(ann, "contested")
    opened = expected_of(await ann.open("/dashboard/policies/contested"))
    hold_all = POLICY | {"target": "contested-model", "default": {"then": "hold"}}
    await ben.change("/dashboard/policies/contested", body=json.dumps(hold_all))

    mine = json.dumps(POLICY | {"target": "contested-model", "judge": "my_judge"}, indent=2)
    tried = await ann.submit(
        "/dashboard/policies/contested/dry-run", status=200, body=mine, last="100", expected=opened
    )
    assert expected_of(tried) == opened, "a dry run does not show what changed, so it does not count as seen"
    page = await ann.submit("/dashboard/policies/contested", status=409, body=mine, expected=opened)
    assert "Version 2 was saved meanwhile by ben@example.com" in words(page)
    assert html.escape(mine).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") + "</textarea>" in page
    compared = page.partition('id="conflict"')[2].partition("</pre>")[0]
    assert "<del>    &#34;then&#34;: &#34;hold&#34;" in compared
    assert "<ins>  &#34;judge&#34;: &#34;my_judge&#34;" in compared
    assert (await ann.api("GET", "/api/policies/contested"))["default"] == {"then": "hold"}
    await ann.submit("/dashboard/policies/contested", status=409, body=mine)

    await ann.submit("/dashboard/policies/contested", body=mine, expected=expected_of(page))
    assert (await ann.api("GET", "/api/policies/contested"))["version"] == 3


async def test_an_open_page_does_not_restore_a_policy_that_was_deleted_meanwhile(server: Live) -> None:
    admin = await signed_in(server, "admin", "restorer")
    await saved(admin, "dropped")
    body, opened = json.dumps(POLICY), expected_of(await admin.open("/dashboard/policies/dropped"))
    await admin.submit("/dashboard/policies/dropped/delete")
    page = await admin.submit("/dashboard/policies/dropped", status=409, body=body, expected=opened)
    assert "The policy was deleted meanwhile by restorer@example.com" in words(page)
    await admin.api("GET", "/api/policies/dropped", status=404)


async def test_a_new_policy_does_not_replace_one_of_the_same_name(server: Live) -> None:
    admin = await signed_in(server, "admin", "twice")
    await saved(admin, "only")
    page = await admin.submit("/dashboard/policies", status=400, name="only", body=json.dumps(POLICY))
    assert "There is a policy" in page
    assert (await admin.api("GET", "/api/policies/only"))["version"] == 1


async def test_a_new_policy_never_replaces_one_of_the_same_name_however_many_there_are(server: Live) -> None:
    admin = await signed_in(server, "admin", "many")
    names = [*(f"n{number:02}" for number in range(MAX_LISTED)), "nz"]
    for name in names:
        await admin.api("PUT", f"/api/policies/{name}", json=POLICY | {"target": f"{name}-model"})
    page = await admin.submit("/dashboard/policies", status=400, name="nz", body=json.dumps(POLICY))
    assert "There is a policy" in page
    assert (await admin.api("GET", "/api/policies/nz"))["version"] == 1
    for name in names:
        await admin.api("DELETE", f"/api/policies/{name}", status=204)


async def test_the_rules_show_what_they_did_and_a_dry_run_says_what_a_draft_would_do(server: Live) -> None:
    admin = await signed_in(server, "admin", "counter")
    await saved(admin, "counted")
    for text in ("good", "bad", "bad too", "fine"):
        await server.ask("POST", "/v1/chat/completions", headers=admin.headers, json=chat(text, "counted-model"))

    page = await admin.open("/dashboard/policies/counted")
    assert cells(page, "answer.text.contains(&#39;bad&#39;)")[1:] == ["0", "2", "0", "0"]
    assert cells(page, "no rule matches")[1:] == ["2", "0", "0", "0"]
    assert cells(await admin.open("/dashboard/policies"), "counted")[4:8] == ["2", "2", "0", "0"]

    draft = json.dumps({"target": "counted-model", "rules": [{"if": "answer.text == 'fine'", "then": "reject"}]})
    page = await admin.submit("/dashboard/policies/counted/dry-run", status=200, body=draft, last="100")
    sentence = words(page.partition('class="claim">')[2].partition("</p>")[0])
    assert sentence == "Of the last 4 answers, 3 would have passed (75 %), 1 would have been rejected (25 %)."
    assert draft.replace('"', "&#34;").replace("'", "&#39;") in page, "the draft stays in the form"
    assert (await admin.api("GET", "/api/policies/counted"))["version"] == 1

    api = await admin.api("POST", "/api/policies/counted/dry-run", json={"last": 100, "policy": json.loads(draft)})
    assert (api["answers"], api["passed"], api["rejected"]) == (4, 3, 1)


async def test_a_recommended_rule_is_shown_and_put_into_the_form_and_saved_only_from_there(server: Live) -> None:
    admin = await signed_in(server, "admin", "learner")
    policy = {"target": "learned-model", "rules": [], "default": {"then": "hold"}}
    await saved(admin, "learned", **policy)
    page = await admin.submit("/dashboard/policies/learned/recommendation", status=409)
    alert = words(page.partition('role="alert">')[2].partition("</p>")[0])
    assert alert.startswith("A recommendation needs 20 answers that people found wrong")

    for number in range(44):
        text = "x" * (30 + number if number % 2 else 1 + number // 2)
        await server.ask("POST", "/v1/chat/completions", headers=admin.headers, json=chat(text, "learned-model"))
    waiting = (await admin.api("GET", "/api/jobs?status=human&limit=100"))["data"]
    held = [job for job in waiting if job["model"] == "learned-model"]
    assert len(held) == 44
    for item in held:
        job = await admin.api("GET", f"/api/jobs/{item['job_id']}")
        length = len(job["response"]["choices"][0]["message"]["content"])
        verdict = {"verdict": "reject", "reason": "wrong"} if length > 30 else {"verdict": "approve"}
        await admin.api("POST", f"/api/reviews/{job['job_id']}/decide", json={"round": 1} | verdict)
    page = await admin.submit("/dashboard/policies/learned/recommendation", status=200)
    assert "From 44 answers that people decided on, of which 22 were wrong" in words(page)
    assert "answer.length" in page
    assert (await admin.api("GET", "/api/policies/learned"))["version"] == 1
    draft = html.unescape(page.partition('name="body" value="')[2].partition('"')[0])
    shown = await admin.submit("/dashboard/policies/learned/draft", status=200, body=draft)
    assert html.escape(draft, quote=False).replace('"', "&#34;") in shown
    assert (await admin.api("GET", "/api/policies/learned"))["version"] == 1
    api = await admin.api("POST", "/api/policies/learned/recommendation", json={"caught": 0.5})
    tried = await admin.api("POST", "/api/policies/learned/dry-run", json={"policy": api["draft"]})
    [row] = [each for each in api["thresholds"] if each["threshold"] == api["threshold"]]
    assert tried["held"] == row["held"] < 44
    await admin.change("/dashboard/policies/learned", body=draft)
    stored = await admin.api("GET", "/api/policies/learned")
    assert (stored["version"], stored["default"], json.loads(draft)["rules"][0]["then"]) == (
        2,
        {"then": "hold"},
        "pass",
    )
    assert await admin.api("PUT", "/api/policies/learned", json=api["draft"])


async def test_the_page_of_a_budget_has_the_figures_of_the_api_and_restarts_it(server: Live) -> None:
    admin = await signed_in(server, "admin", "budgeter")
    await saved(admin, "spent", rules=[], budget=BUDGET)
    for number in range(12):
        body = chat(f"{number}", "spent-model")
        await server.ask("POST", "/v1/chat/completions", headers=admin.headers, json=body)
    figures = await admin.api("GET", "/api/policies/spent/budget")
    page = await admin.open("/dashboard/policies/spent")
    assert figures["claim"] in page
    assert figures["why"] in page
    shown = words(page.partition('class="facts budget-figures">')[2].partition("</dl>")[0])
    assert f"Left without a review {figures['passed']} of 10,000" in shown
    assert f"Audits {figures['audits']}, of which {figures['audits_open']} undecided" in shown
    assert f"Bound on those that left {figures['bound']}" in shown
    now = f"{figures['audits_open'] + figures['wrong_found']} (now)"
    assert cells(page, now) == [str(figures["allowed"] - figures["bound"])]

    assert await admin.submit("/dashboard/policies/spent/restart") == "/dashboard/policies/spent#budget"
    assert (await admin.api("GET", "/api/policies/spent/budget"))["period"] == figures["period"] + 1
    log = await admin.open("/dashboard/audit?subject=budget:spent")
    assert "budgeter@example.com" in log


async def test_the_page_of_a_budget_for_each_group_lists_them_and_restarts_one_or_all(server: Live) -> None:
    admin = await signed_in(server, "admin", "grouper")
    await saved(admin, "grouped", rules=[], budget=BUDGET | {"per": "metadata.team"})
    for team in ("blue & <b>", "red"):
        body = chat("hello", "grouped-model", metadata={"team": team})
        await server.ask("POST", "/v1/chat/completions", headers=admin.headers, json=body)
    page = await admin.open("/dashboard/policies/grouped")
    assert "of one value of metadata.team" in page
    [blue, _] = (await admin.api("GET", "/api/policies/grouped/budget"))["data"]
    names = ("passed", "bound", "allowed", "audits", "audits_open", "wrong_found")
    assert cells(page, "blue &amp; &lt;b&gt;") == ["open", *(str(blue[name]) for name in names)]
    assert "group=blue+%26+%3Cb%3E" in page
    one = await admin.open("/dashboard/policies/grouped?group=red")
    assert "Error budget of red" in words(one)
    address = "/dashboard/policies/grouped/restart"
    assert await admin.submit(f"{address}?group=red") == "/dashboard/policies/grouped?group=red#budget"
    assert (await admin.api("GET", "/api/policies/grouped/budget?group=red"))["period"] == 3
    assert await admin.submit(address) == "/dashboard/policies/grouped#budget"
    assert (await admin.api("GET", "/api/policies/grouped/budget"))["groups"] == 0
    assert "No answer has come under the budget yet" in await admin.open("/dashboard/policies/grouped")


async def test_planted_items_are_listed_and_removed_on_the_page(server: Live) -> None:
    admin = await signed_in(server, "admin", "gardener")
    await saved(admin, "garden", rules=[], budget=BUDGET)
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "2 + 2 is <b>5</b>"}}]}
    item = {"payload": chat("What is 2 + 2?"), "response": answer}
    new = await admin.api("POST", "/api/policies/garden/planted", status=201, json=item)
    assert "2 + 2 is &lt;b&gt;5&lt;/b&gt;" in await admin.open("/dashboard/policies/garden")
    await admin.submit(f"/dashboard/policies/garden/planted/{new['id']}/delete")
    assert (await admin.api("GET", "/api/policies/garden/planted"))["data"] == []


async def test_an_item_is_planted_by_hand_and_from_a_job(server: Live) -> None:
    admin = await signed_in(server, "admin", "planter")
    await saved(admin, "plant", rules=[], budget=BUDGET)
    path, payload = "/dashboard/policies/plant/planted", json.dumps(chat("What is 2 + 2?", "plant-model"))
    location = await admin.submit(path, payload=payload, answer='"five" <b>\r\nor more')
    assert location == "/dashboard/policies/plant#planted"

    hostile = "What is <img src=x onerror=alert(1)>?"
    job_id = (await admin.api("POST", "/api/jobs", status=202, json={"body": chat(hostile, "echo")}))["job_id"]

    async def answered() -> dict[str, Any] | None:
        job = await admin.api("GET", f"/api/jobs/{job_id}")
        return job if job["status"] == "success" else None

    job = (await until(answered))["response"]
    page = await admin.open(f"{path}?job={job_id}")
    assert page.count("What is &lt;img src=x onerror=alert(1)&gt;?") == 2
    form = {"job": job_id, "payload": json.dumps(chat(hostile, "echo"))}
    assert "still that of the job" in await admin.submit(path, status=400, answer=hostile, **form)
    await admin.submit(path, answer="a picture", **form)

    by_hand, from_job = (await admin.api("GET", "/api/policies/plant/planted"))["data"]
    texts = [each["response"]["choices"][0]["message"]["content"] for each in (by_hand, from_job)]
    assert texts == ['"five" <b>\nor more', "a picture"]
    assert (by_hand["payload"], by_hand["response"]["model"]) == (json.loads(payload), "plant-model")
    assert from_job["response"]["id"] == job["id"]
    assert "#34;five&#34; &lt;b&gt;" in await admin.open("/dashboard/policies/plant")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"payload": "{", "answer": "x"}, "line 1, column 2"),
        ({"payload": "[]", "answer": "x"}, "not a valid request"),
        ({"payload": "{}", "answer": "x"}, "with a `model`"),
        ({"payload": "{}", "answer": " "}, "write the wrong answer"),
    ],
)
async def test_what_is_wrong_with_a_planted_item_is_said_in_its_form(
    server: Live, form: dict[str, str], message: str
) -> None:
    admin = await signed_in(server, "admin", "fault")
    if await admin.server.services.store.policies.get("faulty") is None:
        await saved(admin, "faulty", rules=[], budget=BUDGET)
    page = await admin.submit("/dashboard/policies/faulty/planted", status=400, **form)
    assert message in page
    assert "does not exist" in await admin.open("/dashboard/policies/faulty/planted?job=none", status=404)


@pytest.mark.parametrize("role", ["user", "reviewer"])
async def test_only_admins_see_policies_and_budgets(server: Live, role: str) -> None:
    admin = await signed_in(server, "admin", f"owner-{role}")
    await saved(admin, f"hidden-{role}", budget=BUDGET)
    other = await signed_in(server, role, f"other-{role}")  # type: ignore[arg-type]
    for path in ("/dashboard/policies", f"/dashboard/policies/hidden-{role}"):
        await other.open(path, status=403)
    assert 'href="/dashboard/policies"' not in await other.open("/dashboard/jobs")
    for path in ("", "/dry-run", "/delete", "/restart", "/recommendation", "/draft"):
        await other.submit(f"/dashboard/policies/hidden-{role}{path}", status=403, body=json.dumps(POLICY))
        forged = {"sec-fetch-site": "cross-site"}
        await admin.submit(f"/dashboard/policies/hidden-{role}{path}", status=403, headers=forged, body="{}")
