"""The page of the quality of reviews."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from support.live_server import Live, live
from support.pages import Browser, cells, signed_in, words

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", name="server")
async def start_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live(tmp_path_factory.mktemp("quality")) as server:
        yield server


async def held(admin: Browser, text: str) -> str:
    """Queue a request, and return the id of its job once the answer waits for a review."""
    job_id = (await admin.api("POST", "/enqueue", json={"model": "echo", "input": text}))["job_id"]
    token = await admin.server.token("admin", "reader@example.com")
    await admin.server.job_when(token, job_id, lambda job: job["status"] == "human")
    return job_id


async def test_the_figures_are_those_of_the_api_by_each_dimension(server: Live) -> None:
    admin = await signed_in(server, "admin", "judge")
    for status, more in (("success", {"response": "better"}), ("success", {}), ("fail", {"reason": "Wrong."})):
        verdict = {"id": await held(admin, status), "status": status}
        await admin.api("POST", "/reviewJob", json=verdict | more)

    api = await admin.api("GET", "/api/reviews/figures?by=target")
    [figures] = api["data"]
    page = await admin.open("/dashboard/quality?by=target")
    row = cells(page, "echo")
    assert row[0] == str(figures["decisions"]) == "3"
    assert row[3:6] == ["33.3 %", "0.0 %", "33.3 %"]
    assert cells(await admin.open("/dashboard/quality?by=reviewer"), "judge@example.com")[0] == "3"
    assert cells(await admin.open("/dashboard/quality?by=policy"), "none")[0] == "3"
    assert cells(await admin.open("/dashboard/quality?by=prompt_version"), "none")[0] == "3"
    assert "Oldest waiting" in page
    assert "days are those of UTC" in page
    tiles = words(page.partition('class="tiles"')[2].partition("</dl>")[0])
    assert "Oldest waiting none" in tiles
    await held(admin, "waits")
    tiles = words((await admin.open("/dashboard/quality")).partition('class="tiles"')[2].partition("</dl>")[0])
    assert "Oldest waiting now 1 held" in tiles or " s 1 held" in tiles


@pytest.mark.parametrize("role", ["user", "reviewer"])
async def test_only_admins_see_it(server: Live, role: str) -> None:
    other = await signed_in(server, role, f"other-{role}")  # type: ignore[arg-type]
    await other.open("/dashboard/quality", status=403)
