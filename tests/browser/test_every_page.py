"""Every page in a real browser: no error, nothing against the policy, and nothing that axe finds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from signoff.work.pipelines.functions import register_missing_builtins
from support.browser import DESKTOP, PHONE, Enter
from support.live_server import Live, chat, until
from support.stores import a_step, leased

pytestmark = pytest.mark.anyio
PAGES = [
    *(
        "review",
        "review/bulk",
        "review/history",
        "jobs",
        "batches",
        "usage",
        "policies",
        "quality",
        "prompts",
        "pipelines",
        "playground",
    ),
    *("functions", "cache", "limits", "queues", "prices", "people", "models", "audit"),
]


async def filled(server: Live, name: str) -> list[str]:
    """Make a policy with a budget, a prompt, a pipeline and a batch of a file with a fault; return their pages."""
    admin = await server.token("admin", f"{name}@example.com")
    budget = {"answers": 10_000, "share": 0.02, "confidence": 0.95, "audit_rate": 0.1}
    await server.ask("PUT", f"/api/policies/{name}", admin, json={"target": name, "rules": [], "budget": budget})
    for version in range(2):
        method, path = ("PUT", f"/api/prompts/{name}") if version else ("POST", "/api/prompts")
        await server.ask(
            method, path, admin, json={"name": name, "body": f"About {{x}}, {version}", "label": "production"}
        )
    await server.ask("POST", "/api/pipelines", admin, json={"name": f"{name}_run", "body": f"uppercase({name}(x))"})
    new = {"input_file_id": "file-none", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    _, batch = await server.ask("POST", "/v1/batches", admin, json=new)

    async def ended() -> bool | None:
        _, present = await server.ask("GET", f"/v1/batches/{batch['id']}", admin)
        return present["status"] == "failed" or None

    await until(ended)
    library = [f"prompts/{name}", f"pipelines/{name}_run", "people/users/1"]
    return [f"policies/{name}", f"policies/{name}/planted", f"batches/{batch['id']}", *library]


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
    ones = await filled(server, f"item{size['width']}")
    admin = await enter(name, "admin", viewport=size)
    faults = dict[str, list[str]]()
    for address in [*PAGES, *ones, f"review/{job.id}", f"jobs/{job.id}", f"models/model-{name}"]:
        await admin.visit(f"/dashboard/{address}")
        faults[address] = await admin.violations()
        if await admin.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            faults[address].append("wider than the screen")
    visitor = await enter(viewport=size)
    await visitor.visit("/dashboard/sign-in")
    faults["sign-in"] = await visitor.violations()
    assert {address: each for address, each in faults.items() if each} == {}


async def test_the_page_of_the_api_shows_every_part_and_sends_a_request(server: Live, enter: Enter) -> None:
    """The markup is Swagger UI's, so axe does not look at it; any violation of the policy is a fault all the same."""
    admin = await enter("api-reader", "admin")
    await admin.visit("/dashboard/api")
    _, document = await server.ask("GET", "/schema/openapi.json")
    parts = admin.page.locator(".opblock-tag")
    await parts.nth(len(document["tags"]) - 1).wait_for()
    assert await parts.count() == len(document["tags"])
    await admin.page.locator("#operations-tag-health .opblock-tag, #operations-tag-health").first.click()
    await admin.page.get_by_text("/health/live", exact=False).first.click()
    await admin.page.get_by_role("button", name="Try it out").click()
    await admin.page.get_by_role("button", name="Execute").click()
    await admin.page.locator(".live-responses-table .response-col_status", has_text="200").wait_for()
