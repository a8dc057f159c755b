"""Drafts of reviewers: saved as they type, tried again until they are, and part of the verdict that follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from playwright.async_api import Browser, Locator, Route, expect

from signoff.core.job import Job
from signoff.stores.schema import jobs
from support.browser import Person, person, sign_in
from support.desk import completion, held, step, text_of
from support.live_server import Live, until
from support.stores import execute

pytestmark = pytest.mark.anyio
BREAK_OFF = """window.whole = fetch;
    window.fetch = async (...request) =>
        Object.assign(await whole(...request), { text: () => Promise.reject(new TypeError("broken off")) })"""


@pytest.fixture(name="server")
def use_desk(desk: Live) -> Live:
    return desk


class DraftRoute:
    """Way of the requests that save a draft, which can be blocked.

    It is there before the page, because Chromium may let the first requests after that pass.
    """

    status: int | None = None
    """Status of all answers; 0 to break the connection, None to ask the server."""

    async def answer(self, route: Route) -> None:
        """Answer a request."""
        match self.status:
            case None:
                await route.continue_()
            case 0:
                await route.abort()
            case status:
                await route.fulfill(status=status, body="{}")


@asynccontextmanager
async def editing(
    chrome: Browser, server: Live, job: Job, answer: Callable[[Route], object] | None = None
) -> AsyncIterator[Person]:
    """Yield a reviewer whose cursor is at the end of a held answer; `answer` gets the requests that save a draft."""
    async with person(chrome, server.url) as reviewer:
        await sign_in(server.services, reviewer, "ann")
        if answer is not None:
            await reviewer.page.route("**/draft", answer)
        await reviewer.visit(f"/dashboard/review/{job.id}")
        await expect(reviewer.page.locator("#lease")).to_contain_text("You have this answer")
        await reviewer.press("e", "Control+End")
        yield reviewer


def state_of(reviewer: Person) -> Locator:
    """Return the text about the draft."""
    return reviewer.page.locator("#draft-state")


async def draft_of(server: Live, token: str, job: Job) -> str | None:
    """Return the text of the saved draft; None if there is none."""
    _, item = await server.ask("GET", f"/api/reviews/{job.id}", token)
    return (item["draft"] or {}).get("response")


def forgive(visitor: Person, *texts: str) -> None:
    """Drop the faults of the browser that the test has made itself."""
    visitor.faults[:] = [fault for fault in visitor.faults if not any(text in fault for text in texts)]


async def test_what_was_typed_last_is_kept_as_a_draft_if_the_reviewer_leaves_at_once(
    chrome: Browser, server: Live
) -> None:
    job, other = await held(server, 2, completion("the answer"))
    token = await server.token("admin")
    async with editing(chrome, server, job) as reviewer:
        await reviewer.page.keyboard.type("!")
        await step(reviewer, "Escape", "j")
        assert other.id in reviewer.page.url
        assert await until(lambda: draft_of(server, token, job)) == "the answer!"
        await reviewer.page.go_back()
        await expect(reviewer.page.locator(".cm-content")).to_contain_text("the answer!")


async def test_a_draft_that_could_not_be_saved_is_tried_again_until_it_is(chrome: Browser, server: Live) -> None:
    [job] = await held(server, 1, completion("the answer"))
    token, drafts = await server.token("admin"), DraftRoute()
    async with editing(chrome, server, job, drafts.answer) as reviewer:
        page, state = reviewer.page, state_of(reviewer)
        for status in (0, 429, 503):
            drafts.status = status
            await page.keyboard.type("!")
            await expect(state).to_have_text("Not saved yet; trying again")
            drafts.status = None
            await expect(state).to_have_text("Draft saved")
        await page.evaluate(BREAK_OFF)
        await page.keyboard.type("!")
        await expect(state).to_have_text("Not saved yet; trying again")
        await page.evaluate("window.fetch = whole")
        await expect(state).to_have_text("Draft saved")
        session = await reviewer.context.cookies()
        await reviewer.context.clear_cookies()
        await page.keyboard.type("!")
        await expect(state).to_contain_text("you are signed out")
        await reviewer.context.add_cookies(session)  # type: ignore[arg-type]
        await expect(state).to_have_text("Draft saved")
        assert await draft_of(server, token, job) == "the answer!!!!!"
        forgive(reviewer, "status of 503", "net::ERR_FAILED")


async def test_the_desk_says_why_a_draft_cannot_be_saved(chrome: Browser, server: Live) -> None:
    [job] = await held(server, 1, completion("the answer"))
    drafts = DraftRoute()
    async with editing(chrome, server, job, drafts.answer) as reviewer:
        page, state = reviewer.page, state_of(reviewer)
        drafts.status = 413
        await page.keyboard.type("!")
        await expect(state).to_contain_text("too long")
        drafts.status = None
        change = sa.update(jobs).where(jobs.c.id == job.id).values(review_lease="bob@example.com")
        await execute(server.services.store, change)
        await page.keyboard.type("!")
        await expect(state).to_contain_text("bob@example.com")


async def test_the_browser_asks_before_a_draft_that_was_refused_is_lost(chrome: Browser, server: Live) -> None:
    [job] = await held(server, 1, completion("the answer"))
    token, drafts = await server.token("admin"), DraftRoute()
    async with editing(chrome, server, job, drafts.answer) as reviewer:
        page, state = reviewer.page, state_of(reviewer)
        drafts.status = 503
        await page.keyboard.type("!")
        await expect(state).to_have_text("Not saved yet; trying again")
        async with page.expect_event("dialog") as question:
            await page.evaluate("setTimeout(() => location.reload())")
            await (await question.value).dismiss()
        drafts.status = None
        await expect(state).to_have_text("Draft saved")
        assert await draft_of(server, token, job) == "the answer!"
        forgive(reviewer, "status of 503", "dialog: ")
        await reviewer.visit("/dashboard/review")


async def test_a_reviewer_who_leaves_while_the_draft_is_on_its_way_loses_nothing(chrome: Browser, server: Live) -> None:
    job, other = await held(server, 2, completion("the answer"))
    token, waiting = await server.token("admin"), asyncio.Queue[Route]()
    async with editing(chrome, server, job, waiting.put_nowait) as reviewer:
        await reviewer.page.keyboard.type("!")
        request = await waiting.get()
        await step(reviewer, "Escape", "j")
        assert other.id in reviewer.page.url
        assert await until(lambda: draft_of(server, token, job)) == "the answer!"
        await request.abort()


async def test_a_verdict_right_after_typing_waits_for_the_draft_and_is_sent_once(chrome: Browser, server: Live) -> None:
    [job] = await held(server, 1, completion("the answer"))
    saved, may_arrive, verdicts = asyncio.Event(), asyncio.Event(), list[str]()

    async def delay(route: Route) -> None:
        response = await route.fetch()  # the server has the draft, and the page does not know it yet
        saved.set()
        await may_arrive.wait()
        await route.fulfill(response=response)

    async with editing(chrome, server, job, delay) as reviewer:
        page = reviewer.page
        page.on("request", lambda request: verdicts.append(request.url) if request.url.endswith("/decide") else None)
        await page.keyboard.type("!")
        await saved.wait()
        await reviewer.press("Control+Enter", "Control+Enter")
        await page.keyboard.type("?")
        async with page.expect_navigation():
            may_arrive.set()
        assert "No answers are held." in await text_of(reviewer)
        assert len(verdicts) == 1
    decided = await server.services.store.jobs.get(job.id)
    assert "the answer!?" in decided.decision.edit.response


async def test_a_verdict_is_not_sent_over_a_draft_that_cannot_be_saved(chrome: Browser, server: Live) -> None:
    [job] = await held(server, 1, completion("the answer"))
    drafts = DraftRoute()
    async with editing(chrome, server, job, drafts.answer) as reviewer:
        page, drafts.status = reviewer.page, 503
        await page.keyboard.type("!")
        await reviewer.press("Control+Enter")
        await expect(page.locator("#verdict-hint")).to_have_text("Not sent. Not saved yet; trying again")
        assert (await server.services.store.jobs.get(job.id)).decision is None
        drafts.status = None
        await expect(state_of(reviewer)).to_have_text("Draft saved")
        await step(reviewer, "Control+Enter")
        forgive(reviewer, "status of 503")
    assert (await server.services.store.jobs.get(job.id)).decision is not None
