"""The pages of a server that is mounted below a path of another application."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from doors.test_mounted import mount, serving
from signoff.asgi import Application
from signoff.settings import Settings
from support.browser import person, sign_in
from support.database_files import make_file
from support.live_server import chat
from support.stores import ANSWER, a_step, leased

pytestmark = pytest.mark.anyio


async def test_all_of_the_desk_works_below_the_path_of_a_mount(chrome: Browser, tmp_path: Path) -> None:
    make_file(tmp_path / "signoff.db")
    app = Application(Settings(data_dir=tmp_path), work=False)
    async with serving(mount(app, "/ai", keeps_path=True)) as url, person(chrome, f"{url}/ai") as reviewer:
        await reviewer.visit("/health/ready")  # opens the services
        assert app.services is not None
        store, items = app.services.store, []
        for number in range(2):
            job = await leased(store, body=json.dumps(chat(f"question {number}")).encode(), user_id=1000)
            items.append(await store.jobs.transition(job.id, a_step("hold", changes={"response": ANSWER})))
        await sign_in(app.services, reviewer, "ann", "admin")
        async with reviewer.page.expect_navigation():
            await reviewer.press("n")
        await expect(reviewer.page.locator("#lease")).to_contain_text("You have this answer")
        await reviewer.press("e")
        await reviewer.page.keyboard.type("My ")
        await expect(reviewer.page.locator("#draft-state")).to_have_text("Draft saved")
        await expect(reviewer.page.locator(f"#q-{items[0].id}")).to_contain_text("You")
        for keys in (["Control+Enter"], ["Escape", "u"], ["a"], ["s"]):
            await reviewer.press(*keys[:-1])
            async with reviewer.page.expect_navigation():
                await reviewer.press(keys[-1])
            assert reviewer.page.url.startswith(f"{url}/ai/dashboard/review")
        decision = (await store.jobs.get(items[0].id)).decision
        assert decision is not None
        assert decision.edit.response == '"My Hello yourself"'
        for link in await reviewer.page.locator("nav[aria-label=Pages] a:visible").all():
            address = await link.get_attribute("href")
            response = await reviewer.context.request.get(f"{url}{address}")
            assert response.ok, address
        await reviewer.page.get_by_role("button", name="Sign out").click()
        await expect(reviewer.page.get_by_label("E-mail address")).to_be_visible()
        assert reviewer.page.url == f"{url}/ai/"
