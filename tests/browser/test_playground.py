"""The playground in a real browser: two models answer side by side, as their answers come."""

from __future__ import annotations

import asyncio
import re

import pytest
from playwright.async_api import Route, expect

from support.browser import Enter
from support.live_server import Live, chat

pytestmark = pytest.mark.anyio


async def test_two_models_answer_side_by_side(server: Live, enter: Enter) -> None:
    for name in ("parrot", "magpie"):
        await server.model(name)
    owner = await enter("owner", "user")
    await owner.visit("/dashboard/playground")
    page = owner.page
    await page.get_by_label("Ask", exact=True).fill("parrot")
    await page.get_by_label("Compare with").fill("magpie")
    await page.get_by_label("Message", exact=True).fill("two <b>words</b>")
    await owner.press("Control+Enter")
    for side in ("left", "right"):
        await expect(page.locator(f"#state-{side}")).to_have_text("Answered")
        await expect(page.locator(f"#text-{side}")).to_have_text("two <b>words</b>")
        await expect(page.locator(f"#facts-{side}")).to_contain_text("tokens in")
    await expect(page).to_have_url(re.compile(r"/dashboard/playground$"))
    await page.locator("#job-right").click()
    await expect(page.locator("main")).to_contain_text("magpie")


async def test_a_fault_of_one_side_is_shown_there(server: Live, enter: Enter) -> None:
    await server.model("starling")
    owner = await enter("other", "user")
    await owner.visit("/dashboard/playground")
    page = owner.page
    await page.get_by_label("Ask", exact=True).fill("starling")
    await page.get_by_label("Compare with").fill("nosuch")
    await page.get_by_label("Message", exact=True).fill("hello")
    await page.get_by_role("button", name="Ask").click()
    await expect(page.locator("#state-left")).to_have_text("Answered")
    await expect(page.locator("#state-right")).to_have_text("Failed")
    await expect(page.locator("#text-right")).to_contain_text("nosuch")


async def test_an_answer_that_comes_late_appears_by_itself_until_one_asks_anew(server: Live, enter: Enter) -> None:
    await server.model("reviewed", review="always")
    owner = await enter("late", "user")
    token, desk = await server.token("user", "late@example.com"), await server.token("admin", "desk@example.com")
    for word in ("first", "second"):
        _, job = await server.ask(
            "POST", "/api/jobs", token, json={"target": "reviewed", "body": chat(word, "reviewed")}
        )
        await server.job_when(token, job["job_id"], lambda job: job["status"] == "human")
        await owner.visit(f"/dashboard/playground?left={job['job_id']}")
        await expect(owner.page.locator("#state-left")).to_have_text("In review")
        if word == "second":  # the part that looks again is gone, and with it what it would show
            await owner.page.get_by_label("Ask", exact=True).fill("echo")
            await owner.page.get_by_label("Message", exact=True).fill("other")
            await owner.press("Control+Enter")
            await expect(owner.page.locator("#text-left")).to_have_text("other")
            await expect(owner.page.locator("[hx-get*=playground]")).to_have_count(0)
            continue
        verdict = {"id": job["job_id"], "status": "success"}
        assert (await server.ask("POST", "/reviewJob", desk, json=verdict))[0] == 200
        await expect(owner.page.locator("#text-left")).to_have_text("first")
        await expect(owner.page.locator("#state-left")).to_have_text("Answered")
        await expect(owner.page.locator("[hx-get*=playground]")).to_have_count(0)


async def test_a_new_question_replaces_the_answer_that_is_on_its_way(server: Live, enter: Enter) -> None:
    await server.model("cuckoo")
    owner = await enter("hasty", "user")
    await owner.visit("/dashboard/playground")
    page, requests = owner.page, asyncio.Queue[Route]()
    await page.route("**/v1/chat/completions", requests.put_nowait)
    await page.get_by_label("Ask", exact=True).fill("cuckoo")
    await page.get_by_label("Message", exact=True).fill("first")
    await page.get_by_role("button", name="Ask").click()
    await requests.get()
    await page.get_by_label("Message", exact=True).fill("second")
    await page.get_by_role("button", name="Ask").click()
    second = await requests.get()
    assert await page.locator("#state-left").inner_text() == "In progress"
    await second.continue_()
    await expect(page.locator("#state-left")).to_have_text("Answered")
    await expect(page.locator("#text-left")).to_have_text("second")
    await page.get_by_role("button", name="Ask").click()
    await requests.get()
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator("#state-left")).to_have_text("Stopped")
