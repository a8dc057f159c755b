"""Pages that change data, in a real browser: what somebody does on a page is what the API then has."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from playwright.async_api import Route, expect

from signoff.work.pipelines.functions import register_missing_builtins
from support.browser import Enter, Person
from support.live_server import Live, chat
from support.stores import a_step, leased

pytestmark = pytest.mark.anyio
HOSTILE = "<img src=x onerror=alert(1)>\"'\u202e"
SHOWN = HOSTILE.replace("\u202e", "⟨U+202E⟩")


async def api(visitor: Person, path: str) -> Any:
    """Return what the API answers to the person at this browser."""
    return await (await visitor.context.request.get(visitor.url + path)).json()


async def write(visitor: Person, text: str) -> None:
    """Replace the text of the editor of the page."""
    await visitor.page.locator(".cm-content").click()
    await visitor.press("Control+a")
    await visitor.page.keyboard.insert_text(text)


async def test_a_policy_is_written_tried_saved_and_deleted(server: Live, enter: Enter) -> None:
    admin = await enter("policies", "admin")
    page, policy = admin.page, {"target": "cautious", "rules": [{"if": "answer.length > 3", "then": "hold"}]}
    await admin.visit("/dashboard/policies")
    await page.get_by_label("Name").fill("mine")
    faulty = policy | {"rules": [{"if": "answer.len >", "then": "hold"}]}
    await write(admin, json.dumps(faulty, indent=2))
    await expect(page.locator(".cm-lineNumbers")).to_contain_text("4")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("alert")).to_contain_text("Line 5")
    assert await admin.violations() == []
    await write(admin, json.dumps(policy))
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("mine")
    assert (await api(admin, "/api/policies/mine"))["rules"] == policy["rules"]
    await page.get_by_role("button", name="Try on the last").click()
    await expect(page.locator(".dry-run")).to_be_visible()
    assert (await api(admin, "/api/policies/mine"))["version"] == 1


async def test_an_item_is_planted_from_a_job(server: Live, enter: Enter) -> None:
    admin = await enter("planter", "admin")
    budget = {"answers": 10_000, "share": 0.02, "confidence": 0.95, "audit_rate": 0.1}
    token = await server.token("admin", "planting@example.com")
    await server.ask("PUT", "/api/policies/garden", token, json={"target": "rose", "rules": [], "budget": budget})
    await server.ask("POST", "/v1/chat/completions", token, json=chat(HOSTILE, "echo"))
    _, jobs = await server.ask("GET", "/api/jobs?limit=1", token)
    page = admin.page
    await admin.visit("/dashboard/policies/garden")
    await page.get_by_role("link", name="Add one").click()
    await page.get_by_label("Id of the job").fill(jobs["data"][0]["job_id"])
    await page.get_by_role("button", name="Fill in").click()
    assert await page.get_by_label("Wrong answer").input_value() == HOSTILE
    assert await admin.violations() == []
    await page.get_by_label("Wrong answer").fill("wrong")
    await page.get_by_role("button", name="Plant it").click()
    await expect(page.get_by_text("1 planted item")).to_be_visible()
    [item] = (await api(admin, "/api/policies/garden/planted"))["data"]
    assert item["response"]["choices"][0]["message"]["content"] == "wrong"
    assert item["payload"]["messages"][0]["content"] == HOSTILE


async def requests_allowed(admin: Person) -> list[int]:
    """Return the limits of the admin, in requests a minute."""
    limits = (await api(admin, "/api/limits"))["data"]
    return [each["requests_per_minute"] for each in limits if each["who"] == "user:limits@example.com"]


async def test_a_limit_is_set_changed_and_deleted(server: Live, enter: Enter) -> None:
    admin = await enter("limits", "admin")
    page = admin.page
    await admin.visit("/dashboard/limits")
    await page.get_by_label(re.compile("^Who")).fill("user:limits@example.com")
    await page.get_by_label("Requests a minute").fill("7")
    await page.get_by_role("button", name="Set the limit").click()
    await expect(page.get_by_text("of 7")).to_be_visible()
    assert await requests_allowed(admin) == [7]
    await page.get_by_role("link", name="Change the limit of user:limits@example.com").click()
    await page.get_by_label("Requests a minute").fill("9")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_text("of 9")).to_be_visible()
    await page.get_by_role("button", name="Delete the limit of user:limits@example.com").click()
    await expect(page.get_by_text("of 9")).to_have_count(0)
    assert await requests_allowed(admin) == []


async def test_a_second_click_does_not_send_a_form_again(server: Live, enter: Enter) -> None:
    owner = await enter("hasty", "user")
    page, arrived, released = owner.page, asyncio.Event(), asyncio.Event()

    async def answer_late(route: Route) -> None:
        """Let the server create the token, and keep its answer until the second click was made."""
        headers = await route.request.all_headers() | {"sec-fetch-site": "same-origin"}
        response = await route.fetch(headers=headers)
        arrived.set()
        await released.wait()
        await route.fulfill(response=response)

    await page.route("**/dashboard/people/tokens", answer_late)
    await owner.visit("/dashboard/people")
    await page.get_by_label("Name of a new token").fill("app")
    place = await page.get_by_role("button", name="Create a token").bounding_box()
    assert place is not None
    for _ in range(2):  # by the mouse alone, as a locator waits for the answer
        await page.mouse.click(place["x"] + 5, place["y"] + 5)
        await arrived.wait()
    released.set()
    await expect(page.locator(".once pre")).to_be_visible()
    assert [token["name"] for token in (await api(owner, "/api/tokens"))["data"]] == ["app"]


async def test_a_form_can_be_sent_again_when_its_page_is_shown_again(server: Live, enter: Enter) -> None:
    owner = await enter("patient", "user")
    page, sent = owner.page, list[str]()
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    # An answer without a page leaves the form where it is.
    await page.route("**/dashboard/people/tokens", lambda route: route.fulfill(status=204))
    await owner.visit("/dashboard/people")
    button, busy = page.get_by_role("button", name="Create a token"), page.locator("form[aria-busy]")
    for number in (1, 2):
        await button.click()
        await expect(busy).to_have_count(1)
        await button.click()
        await page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow'))")
        await expect(busy).to_have_count(0)
        assert len(sent) == number


async def test_a_token_is_shown_once_and_revoked(server: Live, enter: Enter) -> None:
    admin = await enter("tokens", "admin")
    page = admin.page
    await admin.visit("/dashboard/people")
    await page.get_by_label("E-mail address of a new user").fill("new@example.com")
    await page.get_by_role("button", name="Create a user").click()
    await expect(page.get_by_text("it is not shown again")).to_be_visible()
    await page.get_by_label("Name of a new token").fill(HOSTILE)
    await page.get_by_label("User", exact=True).fill("new@example.com")
    await page.get_by_role("button", name="Create a token").click()
    token = await page.locator(".once pre").inner_text()
    assert (await server.ask("GET", "/api/jobs", token))[0] == 200
    await admin.visit("/dashboard/people")
    assert token not in await page.content()
    await page.get_by_role("button", name=f"Revoke the token {HOSTILE}").click()
    await expect(page.get_by_role("button", name=f"Revoke the token {HOSTILE}")).to_have_count(0)
    assert (await server.ask("GET", "/api/jobs", token))[0] == 401


async def test_a_model_is_registered_tried_and_removed(server: Live, enter: Enter) -> None:
    admin = await enter("models", "admin")
    page = admin.page
    await admin.visit("/dashboard/models")
    await page.get_by_label("Name").fill("mynah")
    await write(admin, '{"kind": "echo", "review": "never"}')
    await page.get_by_role("button", name="Register").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("mynah")
    assert (await api(admin, "/api/models/mynah"))["kind"] == "echo"
    await page.get_by_label("Message").fill(HOSTILE)
    await page.get_by_role("button", name="Try").click()
    await expect(page.get_by_role("status")).to_contain_text(SHOWN)
    await page.get_by_text("Remove…").click()
    await page.get_by_role("button", name="Remove the model").click()
    await expect(page.get_by_role("link", name="mynah")).to_have_count(0)
    response = await admin.context.request.get(f"{admin.url}/api/models/mynah")
    assert response.status == 404


async def test_a_prompt_is_written_with_its_placeholders_in_sight_and_run(server: Live, enter: Enter) -> None:
    await server.model("poet")
    owner = await enter("prompts", "user")
    page = owner.page
    await owner.visit("/dashboard/prompts")
    await page.get_by_label(re.compile("^Name")).fill("haiku")
    await page.get_by_label("Model").select_option("poet")
    await write(owner, "About {subject} in {language}, {{plain}}")
    await expect(page.locator("#checked")).to_contain_text("Placeholders: subject language")
    await expect(page.locator(".cm-placeholder-name")).to_have_text(["{subject}", "{language}"])
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("haiku")
    await write(owner, f"On {{subject}}: {HOSTILE}")
    await expect(page.locator("#checked")).to_have_text(re.compile("Placeholders:\\s+subject\\s*$"))
    await page.get_by_label("What changed").fill("shorter")
    await page.get_by_role("button", name="Save as a new version").click()
    await expect(page.locator("ins")).to_contain_text(SHOWN)
    saved = await api(owner, "/api/prompts/haiku")
    assert (saved["version"], saved["body"], saved["args"]) == (2, f"On {{subject}}: {HOSTILE}", ["subject"])
    assert await owner.violations() == []
    await page.get_by_label("subject").fill("rain")
    await page.get_by_role("button", name="Run").click()
    await expect(page).to_have_url(re.compile("/dashboard/jobs/"))
    await expect(page.get_by_text("haiku v2")).to_be_visible()


async def test_a_pipeline_is_checked_while_it_is_written(server: Live, enter: Enter) -> None:
    await register_missing_builtins(server.services)
    owner = await enter("pipelines", "user")
    page = owner.page
    await owner.visit("/dashboard/pipelines")
    await page.get_by_label(re.compile("^Name")).fill("loud")
    await write(owner, "uppercase(\n  ☃)")
    await expect(page.locator("#checked .error")).to_contain_text("line 2, column 3")
    await expect(page.locator(".cm-fault")).to_have_text("☃")
    await write(owner, "nosuch(text)")
    await expect(page.locator("#checked .error")).to_contain_text("nosuch")
    await write(owner, "uppercase(uppercase(text))")
    await expect(page.locator(".call-tree")).to_contain_text("uppercase")
    await expect(page.locator(".cm-fault")).to_have_count(0)
    assert await owner.violations() == []
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("loud")
    assert (await api(owner, "/api/pipelines/loud"))["body"] == "uppercase(uppercase(text))"


async def test_the_playground_leaves_a_job(server: Live, enter: Enter) -> None:
    await server.model("lyrebird")
    owner = await enter("player", "user")
    page = owner.page
    await owner.visit("/dashboard/playground")
    await page.get_by_label("Ask", exact=True).fill("lyrebird")
    await page.get_by_label("Message", exact=True).fill(HOSTILE)
    await page.get_by_role("button", name="Ask").click()
    await expect(page.locator("#state-left")).to_have_text("Answered")
    [job] = (await api(owner, "/api/jobs"))["data"]
    assert (job["model"], job["status"]) == ("lyrebird", "success")


async def test_an_answer_of_a_megabyte_is_shown_on_the_new_pages(server: Live, enter: Enter) -> None:
    token = await server.token("admin", "large@example.com")
    budget = {"answers": 10_000, "share": 0.02, "confidence": 0.95, "audit_rate": 0.1}
    await server.ask("PUT", "/api/policies/large", token, json={"target": "large", "rules": [], "budget": budget})
    await server.ask("POST", "/v1/chat/completions", token, json=chat("word " * 200_000, "echo"))
    _, jobs = await server.ask("GET", "/api/jobs?limit=1", token)
    admin = await enter("reader", "admin")
    for path in (f"/dashboard/policies/large/planted?job={jobs['data'][0]['job_id']}", "/dashboard/jobs"):
        await admin.visit(path)
        await expect(admin.page.get_by_role("heading", level=1)).to_be_visible()
        assert not await admin.page.evaluate("document.documentElement.scrollWidth > innerWidth")


async def test_jobs_appear_in_the_list_without_a_reload_but_not_under_the_pointer(server: Live, enter: Enter) -> None:
    await server.model("heron")
    owner = await enter("watcher", "user")
    page = owner.page
    token = await server.token("user", "watcher@example.com")
    await server.ask("POST", "/v1/chat/completions", token, json=chat("first of all", "heron"))
    await owner.visit("/dashboard/jobs")
    await expect(page.get_by_text("live", exact=True)).to_be_visible()
    await server.ask("POST", "/v1/chat/completions", token, json=chat("second of all", "heron"))
    await expect(page.get_by_role("link", name="second of all")).to_be_visible()
    await page.get_by_role("link", name="first of all").hover()
    await expect(page.get_by_text("paused while you read")).to_be_visible()
    await server.ask("POST", "/v1/chat/completions", token, json=chat("third of all", "heron"))
    await page.mouse.move(0, 0)
    await expect(page.get_by_role("link", name="third of all")).to_be_visible()


async def test_the_page_of_a_job_follows_it_to_its_end(server: Live, enter: Enter) -> None:
    await server.model("sloth", review="always")
    owner, admin = await enter("follower", "user"), await server.token("admin", "decider@example.com")
    page = owner.page
    token = await server.token("user", "follower@example.com")
    _, job = await server.ask("POST", "/api/jobs", token, json={"body": chat("hello", "sloth")})
    await server.job_when(admin, job["job_id"], lambda each: each["status"] == "human")
    await owner.visit(f"/dashboard/jobs/{job['job_id']}")
    await expect(page.locator(".page-head .status")).to_have_text("In review")
    path = f"/api/reviews/{job['job_id']}/decide"
    await server.ask("POST", path, admin, json={"verdict": "reject", "reason": "too slow", "round": 1})
    await expect(page.locator(".page-head .status")).to_have_text("Failed")
    await expect(page.locator(".events")).to_contain_text("Answer withheld")


async def test_a_button_that_copies_has_its_label_again_after_two_clicks(server: Live, enter: Enter) -> None:
    await server.model("jay")
    token = await server.token("user", "copier@example.com")
    await server.ask("POST", "/v1/chat/completions", token, json=chat("hello", "jay"))
    _, jobs = await server.ask("GET", "/api/jobs?limit=1", token)
    owner = await enter("copier", "user", permissions=["clipboard-write"])
    page = owner.page
    await page.clock.install()
    await owner.visit(f"/dashboard/jobs/{jobs['data'][0]['job_id']}")
    button = page.locator("[data-copy]")
    await button.click()
    await expect(button).to_have_text("Copied")
    await button.click()
    await page.clock.fast_forward("00:05")
    await expect(button).to_have_text("Copy as curl")


async def test_a_queue_with_reasons_is_made_and_an_answer_is_handed_over_to_it(server: Live, enter: Enter) -> None:
    admin, reviewer = await enter("queue-maker", "admin"), await enter("hander", "reviewer")
    page = admin.page
    await admin.visit("/dashboard/queues")
    await page.get_by_label("Name", exact=True).fill("handed")
    await page.get_by_label("E-mail addresses of its reviewers").fill("queue-maker@example.com")
    await page.get_by_role("button", name="Create the queue").click()
    await expect(page.get_by_role("link", name="handed", exact=True)).to_be_visible()
    [queue] = [each for each in (await api(admin, "/api/review-queues"))["data"] if each["name"] == "handed"]
    assert queue["members"] == ["queue-maker@example.com"]
    await page.get_by_label("Reasons, one a line").fill(f"Tone\n{HOSTILE}")
    await page.get_by_role("button", name="Save the reasons").click()
    await expect(page.get_by_label("Reasons, one a line")).to_have_value(f"Tone\n{HOSTILE}")
    assert (await api(admin, "/api/review-reasons"))["reasons"] == ["Tone", HOSTILE]

    job = await leased(server.services.store, body=json.dumps(chat("whose is it?", "echo")).encode(), user_id=1000)
    job = await server.services.store.jobs.transition(job.id, a_step("hold", changes={"response": b'{"a": 1}'}))
    page = reviewer.page
    await reviewer.visit(f"/dashboard/review/{job.id}")
    await expect(page.locator("#lease")).to_contain_text("You have this answer")
    await page.get_by_text("Hand over", exact=True).click()
    await page.get_by_label("To the queue").fill("handed")
    await page.get_by_label("Why").fill(HOSTILE)
    assert await reviewer.violations() == []
    await page.get_by_role("button", name="Hand over, and take the next").click()
    await expect(page.locator(f"#q-{job.id}")).to_have_count(0)
    assert (await api(admin, f"/api/reviews/{job.id}"))["queue"] == "handed"


async def test_a_price_and_an_upstream_key_are_stored_and_removed(server: Live, enter: Enter) -> None:
    admin = await enter("pricer", "admin")
    page = admin.page
    await admin.visit("/dashboard/prices")
    await page.get_by_label(re.compile("^Model")).fill("dear")
    await page.get_by_label("Tokens in, a million", exact=True).fill("2.50")
    await page.get_by_role("button", name="Set the price").click()
    await expect(page.get_by_role("cell", name="$2.5", exact=True)).to_be_visible()
    assert [each["input"] for each in (await api(admin, "/api/prices"))["data"]] == ["2.5"]
    await page.get_by_role("button", name=re.compile("Remove the price of dear")).click()
    await expect(page.get_by_text("No prices.")).to_be_visible()
    assert (await api(admin, "/api/prices"))["data"] == []

    await admin.visit("/dashboard/people")
    await page.get_by_label("Name of a new key").fill("<b>ours")
    await page.get_by_label("Key", exact=True).fill("sk-of-a-test")
    await page.get_by_label("Everybody may use it").check()
    await page.get_by_role("button", name="Store the key").click()
    await expect(page.get_by_role("button", name="Remove the key <b>ours")).to_be_visible()
    assert [(each["name"], each["shared"]) for each in (await api(admin, "/api/keys"))["data"]] == [("<b>ours", True)]
    assert "sk-of-a-test" not in await page.content()
    await page.get_by_role("button", name="Remove the key <b>ours").click()
    await expect(page.get_by_role("button", name="Remove the key <b>ours")).to_have_count(0)
    assert (await api(admin, "/api/keys"))["data"] == []


async def test_a_cached_answer_is_looked_up_and_deleted(server: Live, enter: Enter) -> None:
    await server.model("magpie")
    owner = await enter("looker", "user")
    page, request = owner.page, chat(HOSTILE, "magpie") | {"temperature": 0}
    token = await server.token("user", "looker@example.com")
    await server.ask("POST", "/v1/chat/completions", token, json=request)
    await owner.visit("/dashboard/cache")
    await write(owner, json.dumps(request))
    await page.get_by_role("button", name="Look up").click()
    await expect(page.get_by_role("status")).to_contain_text(SHOWN)
    assert await owner.violations() == []
    assert (await api(owner, "/api/cache"))["entries"] == 1
    await page.get_by_role("button", name="Delete this entry").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Cache")
    assert (await api(owner, "/api/cache"))["entries"] == 0
