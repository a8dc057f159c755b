"""Pages that keep themselves up to date, in a real browser, while the server cannot be reached or refuses."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Route, expect

from support.batches import CHAT, a_line, as_file, new_user, uploaded
from support.browser import DESKTOP, PHONE, Enter
from support.live_server import Live, chat
from support.stores import a_step, leased

pytestmark = pytest.mark.anyio
ERROR_PAGE = '<main id="main"><h1>Service Unavailable</h1></main>'
EXPECTED = re.compile(r"status of 503|net::ERR_|htmx: htmx:error")
LONGER_THAN_EACH_POLL = "00:05"


async def addresses(server: Live, name: str) -> dict[str, str]:
    """Return the addresses of all pages that poll, with the part of each that the poll replaces."""
    job = await leased(server.services.store, body=json.dumps(chat(f"question of {name}")).encode())
    job = await server.services.store.jobs.transition(job.id, a_step("hold", changes={"response": b'"answer"'}))
    return {
        "/dashboard/jobs": "#jobs-live table",
        f"/dashboard/jobs/{job.id}": ".timeline",
        "/dashboard/batches": "#batches table",
        f"/dashboard/batches/{await waiting_batch(server, name)}": "#batch h1",
        f"/dashboard/review/{job.id}": f"#q-{job.id}",
    }


async def waiting_batch(server: Live, name: str) -> str:
    """Return the id of a batch whose only answer is held."""
    await server.model(name, review="always")
    async with new_user(server) as ai:
        file_id = await uploaded(ai, as_file(a_line("a", model=name)))
        batch = await ai.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    return batch.id


async def test_a_failed_poll_leaves_the_page_as_it_is_and_the_next_one_recovers(server: Live, enter: Enter) -> None:
    admin = await enter("poller", "admin")
    page, fault = admin.page, ""

    async def answer(route: Route) -> None:
        if not fault or "hx-request" not in route.request.headers:
            await route.continue_()
        elif fault == "no network":
            await route.abort()
        else:
            await route.fulfill(status=503, content_type="text/html", body=ERROR_PAGE)

    await page.route("**/dashboard/**", answer)
    await page.clock.install()
    for address, part in (await addresses(server, "polled")).items():
        await admin.visit(address)
        state = page.locator("#live-state")
        usual = await state.inner_text()
        for fault in ("unavailable", "", "no network", ""):
            await page.clock.fast_forward(LONGER_THAN_EACH_POLL)
            await expect(state).to_have_text("not up to date" if fault else usual)
            await expect(page.locator(part)).to_be_visible()
            await expect(page.get_by_text("Service Unavailable")).to_have_count(0)
    admin.faults[:] = [each for each in admin.faults if not EXPECTED.search(each)]


async def test_a_page_of_somebody_who_was_signed_out_says_so_and_leads_back(server: Live, enter: Enter) -> None:
    admin = await enter("leaver", "admin")
    page = admin.page
    await page.clock.install()
    session = await admin.context.cookies()
    for address, part in (await addresses(server, "left")).items():
        await admin.visit(address)
        usual = await page.locator("#live-state").inner_text()
        await admin.context.clear_cookies()
        await page.clock.fast_forward(LONGER_THAN_EACH_POLL)
        await expect(page.locator("#live-state")).to_have_text("you are signed out: sign in")
        await expect(page.locator(part)).to_be_visible()
        await page.set_viewport_size(PHONE)
        assert not await page.evaluate("document.documentElement.scrollWidth > innerWidth"), address
        await page.set_viewport_size(DESKTOP)
        # signed in again in another tab
        await admin.context.add_cookies(session)  # type: ignore[arg-type]
        await page.clock.fast_forward(LONGER_THAN_EACH_POLL)
        await expect(page.locator("#live-state")).to_have_text(usual)
        await admin.context.clear_cookies()
        await page.clock.fast_forward(LONGER_THAN_EACH_POLL)
        await page.get_by_role("link", name="sign in", exact=True).click()
        await expect(page.get_by_label("E-mail address")).to_be_visible()
        assert urlsplit(page.url).path == "/dashboard/sign-in"
        await admin.context.add_cookies(session)  # type: ignore[arg-type]
