"""Every page in a real browser: no error, nothing against the policy, and nothing that axe finds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from signoff.work.pipelines.functions import register_missing_builtins
from support.browser import DESKTOP, PHONE, Enter
from support.live_server import Live, chat
from support.stores import a_step, leased

pytestmark = pytest.mark.anyio
PAGES = [
    *("review", "review/bulk", "jobs", "batches", "usage", "policies", "quality", "prompts", "pipelines", "playground"),
    *("functions", "cache", "limits", "people", "models", "audit"),
]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_no_page_has_an_error_or_anything_that_axe_finds(
    server: Live, enter: Enter, size: dict[str, Any]
) -> None:
    name = f"wide-{size['width']}"
    await register_missing_builtins(server.services)
    await server.model(f"model-{name}")
    await server.ask("POST", "/v1/chat/completions", await server.token(), json=chat("hi", f"model-{name}"))
    job = await leased(server.services.store, body=json.dumps(chat(f"question of {name}")).encode())
    job = await server.services.store.jobs.transition(job.id, a_step("hold", changes={"response": b'"answer"'}))
    admin = await enter(name, "admin", viewport=size)
    faults = dict[str, list[str]]()
    for address in [*PAGES, f"review/{job.id}", f"jobs/{job.id}"]:
        await admin.visit(f"/dashboard/{address}")
        faults[address] = await admin.violations()
        if await admin.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            faults[address].append("wider than the screen")
    visitor = await enter(viewport=size)
    await visitor.visit("/dashboard/sign-in")
    faults["sign-in"] = await visitor.violations()
    assert {address: each for address, each in faults.items() if each} == {}
