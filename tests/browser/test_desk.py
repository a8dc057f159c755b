"""The review desk as reviewers use it: by keyboard, in two windows, on tool calls, and on hostile texts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.async_api import Browser, Route, expect

from signoff.core.job import Job
from signoff.core.reviews.ruling import Ruling
from signoff.stores.schema import jobs
from support.browser import DESKTOP, PATIENCE_MS, PHONE, person, sign_in
from support.desk import completion, held, step, text_of
from support.live_server import Live, until
from support.stores import execute

pytestmark = pytest.mark.anyio
NOTE_WHAT_COMES = """new MutationObserver(() => noted(document.querySelector(".item.coming").innerText))
    .observe(document.querySelector("main"), { childList: true })"""
NOTE_CLICKS = """window.clicks = [];
    document.querySelector("#queue").addEventListener("click", (event) => {
        event.preventDefault();
        clicks.push(event.target.closest("li").id.slice(2));
    });"""
NOTE_VERDICTS = """window.verdicts = 0;
    document.querySelector("#verdict").addEventListener("submit", (event) => {
        event.preventDefault();
        verdicts += 1;
    })"""
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOL = {
    "type": "object",
    "properties": {
        "order_id": {"type": "string"},
        "amount": {"type": "number", "maximum": 150},
        "speed": {"enum": ["slow", "fast"]},
        "notify": {"type": "boolean"},
        "items": {"type": "array"},
    },
    "required": ["order_id", "amount"],
}


@pytest.fixture(name="server")
def use_desk(desk: Live) -> Live:
    return desk


async def released(server: Live, token: str, job_id: str) -> dict[str, Any]:
    """Let the verdict take effect, and return the job as the API has it once it has ended."""
    await execute(server.services.store, sa.update(jobs).where(jobs.c.id == job_id).values(release_at=0))

    async def ended() -> dict[str, Any] | None:
        _, job = await server.ask("GET", f"/api/jobs/{job_id}", token)
        return job if job["status"] in {"success", "fail"} else None

    return await until(ended)


async def test_a_new_reviewer_clears_ten_answers_by_keyboard_alone(chrome: Browser, server: Live) -> None:
    admin = await server.token("admin")
    await server.ask("PUT", "/api/review-reasons", admin, json={"reasons": ["Wrong fact", "Tone"]})
    answers = await held(server, 10, completion("the answer"), target="echo")
    async with person(chrome, server.url) as reviewer:
        await sign_in(server.services, reviewer, "new")
        await reviewer.press("?")
        await expect(reviewer.page.get_by_role("dialog", name="Keys")).to_be_visible()
        await reviewer.press("Escape")
        await step(reviewer, "n")
        # one is edited: no key of the text is one of the desk
        await reviewer.press("e", "Control+End")
        await reviewer.page.keyboard.type(" are jax?")
        await expect(reviewer.page.locator("ins, .cm-insertedLine, .cm-inlineChangedLine").first).to_be_visible()
        await step(reviewer, "Control+Enter")
        # one is sent back with an instruction
        await reviewer.press("r")
        await reviewer.page.keyboard.type("Say it in two words.")
        await step(reviewer, "Control+Enter")
        # one is rejected with a reason: one key alone does nothing
        await reviewer.press("x")
        await expect(reviewer.page.locator("#verdict-hint")).to_contain_text("1–2")
        await step(reviewer, "2")
        # one is undone, and approved after all
        await step(reviewer, "a")
        await step(reviewer, "u")
        await expect(reviewer.page.locator(".item-id")).to_contain_text("round 2")
        await step(reviewer, "a")
        for _ in range(6):
            await step(reviewer, "a")
        assert "No answers are held." in await text_of(reviewer)
    ended = [await released(server, admin, job.id) for job in answers]
    assert [job["status"] for job in ended] == ["success", "success", "fail", *["success"] * 7]
    texts = [job["response"]["choices"][0]["message"]["content"] for job in ended if job["status"] == "success"]
    assert texts == ["the answer are jax?", "Say it in two words.", *["the answer"] * 7]
    assert ended[2]["error"]["message"] == "Tone"
    assert ended[3]["round"] == 2


async def test_two_reviewers_see_each_other_and_never_have_the_same_answer(chrome: Browser, server: Live) -> None:
    first, second, third = await held(server, 3)
    async with person(chrome, server.url) as ann, person(chrome, server.url) as bob:
        await sign_in(server.services, ann, "ann")
        await sign_in(server.services, bob, "bob")
        await step(ann, "n")
        await step(bob, "n")
        assert first.id in ann.page.url
        assert second.id in bob.page.url
        # each sees the other without a reload
        await expect(ann.page.locator(f"#q-{second.id}")).to_contain_text("bob@example.com")
        await expect(bob.page.locator(f"#q-{first.id}")).to_contain_text("ann@example.com")
        # who opens the answer of another reads it, and is told
        await bob.visit(f"/dashboard/review/{first.id}")
        await expect(bob.page.locator("#lease")).to_contain_text("ann@example.com has it open")
        async with bob.page.expect_navigation():
            await bob.page.click("button[value=approve]")
        assert "ann@example.com" in await text_of(bob)
        # leaving gave the second answer back, and so does closing the tab
        await step(ann, "a")
        assert second.id in ann.page.url
        await expect(ann.page.locator("#lease")).to_contain_text("You have this answer")
        await ann.page.close()
        await bob.visit(f"/dashboard/review/{third.id}")
        await expect(bob.page.locator(f"#q-{second.id}")).not_to_contain_text("ann@example.com")


async def test_a_reviewer_who_reloads_an_answer_still_has_it(chrome: Browser, server: Live) -> None:
    _, job = await held(server, 2)
    store = server.services.store

    async def is_taken_again(times: int) -> bool | None:
        """Return True once the reviewer has the answer again after the page gave it back `times` times."""
        verbs = [event.verb for event in await store.jobs.events(job.id)]
        return (verbs.count("leave") == times and (await store.jobs.get(job.id)).review_lease == email) or None

    async with person(chrome, server.url) as reviewer:
        email = await sign_in(server.services, reviewer, "ann")
        await reviewer.visit(f"/dashboard/review/{job.id}")
        await expect(reviewer.page.locator("#lease")).to_contain_text("You have this answer")
        await reviewer.page.reload()
        await until(lambda: is_taken_again(1))
        await reviewer.page.locator(f"#q-{job.id} a").click()
        await until(lambda: is_taken_again(2))
        await expect(reviewer.page.locator("#lease")).to_contain_text("You have this answer")


async def test_the_keys_do_nothing_at_the_ends_of_the_queue(chrome: Browser, server: Live) -> None:
    first, last = await held(server, 2)
    async with person(chrome, server.url) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        for job, key, other_key in ((first, "k", "j"), (last, "j", "k")):
            await reviewer.visit(f"/dashboard/review/{job.id}")
            await reviewer.page.evaluate(NOTE_CLICKS)
            await reviewer.press(key)
            assert await reviewer.page.evaluate("clicks") == []
            await reviewer.press(other_key)
            assert await reviewer.page.evaluate("clicks") == [first.id if job == last else last.id]


async def test_many_answers_are_decided_at_once_and_undone(chrome: Browser, server: Live) -> None:
    answers = await held(server, 12, completion("the same"), target="echo")
    [other] = await held(server, 1, completion("another"), target="other")
    admin = await server.token("admin")

    async def verdicts() -> list[str | None]:
        jobs = [await server.services.store.jobs.get(job.id) for job in [*answers, other]]
        return [None if job is None or job.decision is None else job.decision.verdict for job in jobs]

    async with person(chrome, server.url) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        page = reviewer.page
        await page.get_by_text("Filter and sort").click()
        await page.get_by_label("Target").fill("echo")
        await page.get_by_role("button", name="Apply").click()
        await page.get_by_role("link", name="Decide on many at once").click()
        assert await page.get_by_label("Model, prompt or pipeline").input_value() == "echo"
        await page.get_by_label("Approve as it is").check()
        await page.get_by_role("button", name="Show which they are").click()
        number = int((await page.get_by_role("heading", level=1).inner_text()).split()[0])
        assert await verdicts() == [None] * 13
        assert await reviewer.violations() == []
        await page.get_by_role("button", name=f"Approve {number} answer").click()
        await expect(page.get_by_role("heading", level=1)).to_contain_text(f"{number} answer")
        assert (await verdicts()).count("approve") == number
        await page.get_by_role("button", name="Undo all").click()
        await expect(page.get_by_text(f"{number} undone")).to_be_visible()
    assert await verdicts() == [None] * 13
    _, waiting = await server.ask("GET", "/api/reviews", admin)
    assert [item["round"] for item in waiting["data"]].count(2) == number


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_the_button_that_rejects_many_answers_can_be_read(
    chrome: Browser, server: Live, size: dict[str, Any]
) -> None:
    await held(server, 12, completion("the same"), target="echo")
    async with person(chrome, server.url, viewport=size) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        await reviewer.visit("/dashboard/review/bulk")
        await reviewer.page.get_by_label("Reject", exact=True).check()
        await reviewer.page.get_by_label("Reason").fill("Tone")
        await reviewer.page.get_by_role("button", name="Show which they are").click()
        button = reviewer.page.get_by_role("button", name="Reject")
        await expect(button).to_be_visible()
        assert await reviewer.violations() == []
        await button.hover()
        assert await reviewer.violations() == []


async def refund(server: Live, arguments: dict[str, Any], text: str | None = None) -> Job:
    tools = [{"type": "function", "function": {"name": "refund", "parameters": TOOL}}]
    call = {"id": "call_1", "type": "function", "function": {"name": "refund", "arguments": json.dumps(arguments)}}
    [job] = await held(server, 1, completion(text, call), body={"model": "echo", "tools": tools})
    return job


async def test_a_refund_is_changed_through_the_form(chrome: Browser, server: Live) -> None:
    arguments = {"amount": 150, "order_id": 'A "1"', "notify": True, "items": [1]}
    job, admin = await refund(server, arguments), await server.token("admin")
    async with person(chrome, server.url) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        await reviewer.visit(f"/dashboard/review/{job.id}")
        amount = reviewer.page.get_by_label("amount")
        assert await reviewer.page.get_by_label("order_id").input_value() == 'A "1"'
        # what the schema does not allow is said at the field, while one types and on approval
        await amount.fill("1000")
        fault = amount.locator("xpath=../p")
        await expect(fault).to_contain_text("150")
        await expect(reviewer.page.locator("#draft-state")).to_have_text("Draft saved")
        async with reviewer.page.expect_navigation():
            await reviewer.press("Control+Enter")
        await expect(fault).to_contain_text("150")
        assert await amount.input_value() == "1000"
        await amount.fill("ten")
        await expect(fault).to_contain_text("This is not a number")
        await amount.fill("100")
        await expect(fault).to_have_text("was 150")
        await reviewer.page.get_by_label("yes").uncheck()
        await reviewer.page.get_by_label("speed").select_option("fast")
        await step(reviewer, "Control+Enter")
    ended = await released(server, admin, job.id)
    [call] = ended["response"]["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == arguments | {"amount": 100, "notify": False, "speed": "fast"}


async def test_without_javascript_a_reviewer_reads_decides_and_signs_out(chrome: Browser, server: Live) -> None:
    job, admin = await refund(server, {"amount": 150, "order_id": "1", "notify": True}), await server.token("admin")
    [other] = await held(server, 1)
    async with person(chrome, server.url, java_script_enabled=False) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        await reviewer.page.get_by_role("button", name="Take the next").click()
        await reviewer.page.get_by_label("amount").fill("151")
        await reviewer.page.get_by_role("button", name="Approve").click()
        fault = reviewer.page.get_by_label("amount").locator("xpath=../p")
        await expect(fault).to_contain_text("150")
        await reviewer.page.get_by_role("radio", name="Refuse with a message").check()
        await reviewer.page.get_by_label("Message to the agent").fill("Open a return.")
        await reviewer.page.get_by_role("button", name="Approve").click()
        assert other.id in reviewer.page.url
        await reviewer.page.get_by_role("button", name="Undo").click()
        await reviewer.page.get_by_role("button", name="Approve").click()
        await reviewer.page.get_by_role("button", name="Sign out").click()
        await expect(reviewer.page.get_by_label("E-mail address")).to_be_visible()
    message = (await released(server, admin, job.id))["response"]["choices"][0]["message"]
    assert "tool_calls" not in message
    assert message["content"].endswith("so it was not made: Open a return.")


async def test_what_a_model_wrote_is_shown_and_never_run(chrome: Browser, server: Live) -> None:
    hostile = (
        '<img src="//elsewhere.test/x" onerror=alert(1)>"\'</textarea><script>alert(2)</script>\u202etxt.exe{{7*7}}'
    )
    picture = f"data:image/png;base64,{PIXEL}"
    content = [{"type": "text", "text": hostile}, {"type": "image_url", "image_url": {"url": picture}}]
    drawing = {"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,PHN2Zy8+"}}
    far = {"type": "image_url", "image_url": {"url": "http://elsewhere.test/far.png"}}
    tools = [{"type": "function", "function": {"name": hostile, "parameters": {"properties": {hostile: {}}}}}]
    call = {
        "id": hostile,
        "type": "function",
        "function": {"name": hostile, "arguments": json.dumps({hostile: hostile})},
    }
    body = {"model": "echo", "tools": tools, "messages": [{"role": hostile, "content": [*content, drawing, far]}]}
    [job] = await held(
        server, 1, completion(hostile, call), body=body, ruling=Ruling(outcome="hold", signals={hostile: hostile})
    )
    async with person(chrome, server.url) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        for address in (f"/dashboard/review/{job.id}", f"/dashboard/jobs/{job.id}", "/dashboard/jobs"):
            await reviewer.visit(address)
            assert "onerror=alert(1)" in await text_of(reviewer)
            # The editor puts images without a source beside a mark.
            images = reviewer.page.locator("main img:not(.cm-widgetBuffer, [src^='/dashboard/'])")
            assert await images.count() == 0
        await reviewer.visit(f"/dashboard/review/{job.id}")
        await expect(reviewer.page.get_by_role("img", name="Image 1 of the request")).to_have_js_property(
            "naturalWidth", 1
        )
        await expect(reviewer.page.get_by_text("Download file 2")).to_be_visible()
        assert await reviewer.page.locator('[name="call.0.0"]').input_value() == hostile
        await reviewer.press("e")
        await reviewer.page.keyboard.type("!")
        await expect(reviewer.page.locator("#draft-state")).to_have_text("Draft saved")
        assert await reviewer.violations() == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_a_long_signal_does_not_push_another_one_out_of_sight(
    chrome: Browser, server: Live, size: dict[str, Any]
) -> None:
    answer = {"decision": "allow", "reasons": ["because " * 30] * 8}
    signals = {"signals.webhook": answer, "signals.logprob_min": -3.92, "answer.text": "word " * 400}
    [job] = await held(server, 1, completion("x"), ruling=Ruling(outcome="hold", signals=signals))
    async with person(chrome, server.url, viewport=size) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        await reviewer.visit(f"/dashboard/review/{job.id}")
        table = reviewer.page.locator(".sig")
        await table.locator("summary").first.click()
        await expect(table.get_by_text('"decision": "allow"')).to_be_visible()
        box = await reviewer.page.locator(".signals").bounding_box()
        cell = await table.get_by_text("-3.92").bounding_box()
        assert box is not None
        assert cell is not None
        assert cell["x"] + cell["width"] <= box["x"] + box["width"] <= size["width"]
        assert await reviewer.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await reviewer.violations() == []


async def test_the_editor_marks_unseen_characters_and_gives_each_line_its_direction(
    chrome: Browser, server: Live
) -> None:
    text = "to \u202egnp.exe 👩\u200d💻\nשלום, world\npay\u200b\U000e0041"
    [job] = await held(server, 1, completion(text))
    admin = await server.token("admin")
    async with person(chrome, server.url) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        await reviewer.visit(f"/dashboard/review/{job.id}")
        marks = reviewer.page.locator(".cm-content .unseen")
        await expect(marks).to_have_text(["⟨U+202E⟩", "⟨U+200B⟩", "⟨U+E0041⟩"])
        lines = reviewer.page.locator(".cm-line")
        directions = await lines.evaluate_all("lines => lines.map(line => getComputedStyle(line).direction)")
        assert directions == ["ltr", "rtl", "ltr"]
        await reviewer.press("e", "Control+End")
        await reviewer.page.keyboard.type("!")
        await expect(marks).to_have_count(3)
        await step(reviewer, "Control+Enter")
    ended = await released(server, admin, job.id)
    assert ended["response"]["choices"][0]["message"]["content"] == f"{text}!"


async def test_a_person_writes_the_answer_of_a_model_that_is_a_person(chrome: Browser, server: Live) -> None:
    [job] = await held(server, 1, None)
    admin = await server.token("admin")
    async with person(chrome, server.url) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        await reviewer.visit(f"/dashboard/review/{job.id}")
        await step(reviewer, "a")
        await expect(reviewer.page.locator("#answer-fault")).to_contain_text("has no answer yet")
        await reviewer.press("e")
        await reviewer.page.keyboard.type("Good day.")
        await step(reviewer, "Control+Enter")
    ended = await released(server, admin, job.id)
    assert ended["response"]["choices"][0]["message"]["content"] == "Good day."


async def test_keys_that_are_held_down_decide_once(chrome: Browser, server: Live) -> None:
    job, other = await held(server, 2, completion("the answer"))
    async with person(chrome, server.url) as reviewer:
        keyboard = reviewer.page.keyboard
        await sign_in(server.services, reviewer, "ann")
        await reviewer.visit(f"/dashboard/review/{job.id}")
        await keyboard.down("Control")
        async with reviewer.page.expect_navigation():
            await keyboard.down("Enter")
        assert other.id in reviewer.page.url
        await reviewer.page.evaluate(NOTE_VERDICTS)
        await keyboard.down("Enter")
        assert await reviewer.page.evaluate("verdicts") == 0
        await keyboard.up("Enter")
        await keyboard.down("Enter")
        assert await reviewer.page.evaluate("verdicts") == 1


async def test_the_next_answer_is_there_to_read_while_a_verdict_is_on_its_way(chrome: Browser, server: Live) -> None:
    job, other = await held(server, 2, completion("the answer"))
    may_arrive, texts = asyncio.Event(), asyncio.Queue[str]()

    async def delay(route: Route) -> None:
        await may_arrive.wait()
        await route.continue_()

    async with person(chrome, server.url) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        await reviewer.page.route("**/dashboard/decide", delay)
        async with reviewer.page.expect_response(f"**/dashboard/review/{other.id}") as ahead:
            await reviewer.visit(f"/dashboard/review/{job.id}")
        await (await ahead.value).finished()
        await reviewer.page.expose_function("noted", texts.put_nowait)
        await reviewer.page.evaluate(NOTE_WHAT_COMES)  # locators wait for the navigation
        await reviewer.press("a")
        assert "question 1" in await asyncio.wait_for(texts.get(), PATIENCE_MS / 1000)
        assert (await server.services.store.jobs.get(other.id)).review_lease is None
        async with reviewer.page.expect_navigation():
            may_arrive.set()
        await expect(reviewer.page.locator(".item:not(.coming)")).to_contain_text("question 1")
        assert (await server.services.store.jobs.get(other.id)).review_lease == "ann@example.com"
    assert (await server.services.store.jobs.get(job.id)).decision is not None


async def test_votes_are_blind_until_they_disagree(chrome: Browser, server: Live) -> None:
    [job] = await held(server, 1, ruling=Ruling(outcome="hold", votes=2))
    address = f"/dashboard/review/{job.id}"
    async with person(chrome, server.url) as ann, person(chrome, server.url) as bob, person(chrome, server.url) as eve:
        for name, voter, keys in (("ann", ann, "a"), ("bob", bob, "r")):
            await sign_in(server.services, voter, name)
            await voter.visit(address)
            text = await text_of(voter)
            assert "2 reviewers must agree" in text
            assert "do not agree" not in text
            await step(voter, *((keys,) if keys == "a" else (keys, "Control+Enter")))
        await sign_in(server.services, eve, "eve")
        await eve.visit(address)
        assert "ann@example.com\nApproved\nbob@example.com\nSent back" in await text_of(eve)


LONG_JSON = json.dumps([{"line": number} for number in range(10_000)], indent=1)


@pytest.mark.parametrize(
    "answer", [LONG_JSON, pytest.param("word " * 200_000, marks=pytest.mark.long)], ids=["json", "words"]
)
async def test_a_very_long_answer_can_be_read_and_decided(chrome: Browser, server: Live, answer: str) -> None:
    long = [{"role": "user", "content": answer}]
    [job] = await held(server, 1, completion(answer), body={"model": "echo", "messages": long})
    async with person(chrome, server.url) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        await reviewer.visit(f"/dashboard/review/{job.id}")
        assert len(await reviewer.page.content()) < 3 * len(answer) + 300_000
        assert await reviewer.page.evaluate("document.querySelectorAll('*').length") < 2_000
        await step(reviewer, "a")
        assert (await server.services.store.jobs.get(job.id)).decision is not None, await text_of(reviewer)
