"""The pages of batches in a real browser: upload, counts that change by themselves, and the download of the results."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Error, Route, expect

from support.batches import a_line, as_file
from support.browser import Enter
from support.live_server import Live

pytestmark = pytest.mark.anyio
NEXT_POLL = "new Promise((done) => document.addEventListener('htmx:before:request', () => setTimeout(done)))"
WRONG_ENDPOINT = "document.querySelector('#endpoint option:checked').value = '/etc/passwd'"


def jsonl(lines: list[dict[str, Any]], name: str = "requests.jsonl") -> Any:
    return {"name": name, "mimeType": "application/jsonl", "buffer": as_file(*lines)}


async def test_a_file_is_uploaded_counted_live_and_its_results_are_downloaded(server: Live, enter: Enter) -> None:
    lines = [a_line(str(number), f"text {number}") for number in range(21)]
    owner = await enter("uploader", "user")
    page = owner.page
    await owner.visit("/dashboard/batches")
    await page.get_by_label("File").set_input_files(jsonl(lines))
    await page.get_by_role("button", name="Upload and start").click()
    # the page of the batch changes by itself until the batch has ended
    await expect(page.get_by_role("heading", level=1)).to_have_text("requests.jsonl")
    output = page.get_by_role("link", name="Download the output")
    await expect(output).to_be_visible()
    await expect(page.locator("#completed")).to_have_text("21")
    assert await owner.violations() == []
    async with page.expect_download() as waiting:
        await output.click()
    download = await waiting.value
    content = Path(await download.path()).read_bytes()
    # as the API has it
    batch = (await api(owner, "/v1/batches"))["data"][0]
    assert batch["request_counts"] == {"total": 21, "completed": 21, "failed": 0}
    assert [json.loads(line)["custom_id"] for line in content.splitlines()] == [line["custom_id"] for line in lines]
    by_api = await owner.context.request.get(f"{owner.url}/v1/files/{batch['output_file_id']}/content")
    assert await by_api.body() == content
    await page.get_by_role("link", name="Its jobs").click()
    await expect(page.get_by_role("row")).to_have_count(22)


async def api(owner: Any, path: str) -> Any:
    """Return what the API answers to the person at this browser."""
    return await (await owner.context.request.get(owner.url + path)).json()


async def test_counts_come_to_a_page_that_is_open_and_not_to_one_that_nobody_looks_at(
    server: Live, enter: Enter
) -> None:
    await server.model("slow", review="always")
    owner = await enter("watcher", "user")
    page, requested = owner.page, asyncio.Queue[str]()

    async def note(route: Route) -> None:
        requested.put_nowait(route.request.url)
        await route.continue_()

    await page.route("**/live", note)
    await owner.visit("/dashboard/batches")
    await page.get_by_label("File").set_input_files(jsonl([a_line("a", model="slow")]))
    await page.get_by_role("button", name="Upload and start").click()
    await expect(page.locator("#held")).to_have_text("1")
    # a verdict of somebody else is seen without a reload
    await page.evaluate("Object.defineProperty(document, 'hidden', { get: () => window.nobodyLooks })")
    await page.evaluate("window.nobodyLooks = true")
    await page.evaluate(NEXT_POLL)
    while not requested.empty():  # by a poll that came before
        requested.get_nowait()
    await page.evaluate(NEXT_POLL)
    assert requested.empty()
    await page.evaluate("window.nobodyLooks = false")
    await requested.get()
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.get_by_text("Cancelled", exact=True)).to_be_visible()


async def test_a_fault_of_the_upload_is_said_in_the_form(server: Live, enter: Enter) -> None:
    owner = await enter("careless", "user")
    page = owner.page
    await owner.visit("/dashboard/batches")
    await page.get_by_label("File").set_input_files(jsonl([a_line("a")]))
    await page.evaluate(WRONG_ENDPOINT)
    await page.get_by_role("button", name="Upload and start").click()
    await expect(page.locator("#upload-fault")).to_contain_text("valid `endpoint`")
    await expect(page.get_by_role("button", name="Upload and start")).to_be_enabled()


async def test_an_upload_shows_how_far_it_is_and_can_be_stopped(server: Live, enter: Enter) -> None:
    owner = await enter("stopper", "user")
    page = owner.page
    await owner.visit("/dashboard/batches")

    held = asyncio.Queue[Route]()
    await page.route("**/dashboard/batches", held.put_nowait)
    await page.get_by_label("File").set_input_files(jsonl([a_line("a")]))
    await page.get_by_role("button", name="Upload and start").click()
    await expect(page.get_by_label("Uploaded")).to_be_visible()
    route = await held.get()
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator("#upload-fault")).to_contain_text("was stopped")
    with contextlib.suppress(Error):
        await route.abort()


async def test_without_javascript_a_file_is_uploaded_too(server: Live, enter: Enter) -> None:
    owner = await enter("plain", "user", java_script_enabled=False)
    page = owner.page
    await owner.visit("/dashboard/batches")
    await page.get_by_label("File").set_input_files(jsonl(["no json"], "<b>\"x'.jsonl"))  # type: ignore[list-item]
    await page.get_by_role("button", name="Upload and start").click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("<b>")
