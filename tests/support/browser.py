"""People at the dashboard: each has a browser context of their own, and everything that goes wrong in it is kept."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from playwright.async_api import Browser, BrowserContext, Page, Request, async_playwright, expect

from signoff.core.access import Role
from signoff.work.admin.people import create_user, sign_in_link
from signoff.work.services import Services

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
AXE = Path(__file__).parents[2] / "frontend" / "node_modules" / "axe-core" / "axe.min.js"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)
_VIOLATIONS = """(options) => axe.run(document, options).then(({ violations }) =>
    violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.target} ${node.failureSummary}`)))"""
# An answer with an error status is also an error of the console; tests look at the page that it comes with.
_OF_A_STATUS = re.compile(r"Failed to load resource: the server responded with a status of 4\d\d")


@asynccontextmanager
async def browser(binary: str) -> AsyncIterator[Browser]:
    """Run a browser, and end it after the block."""
    async with async_playwright() as playwright:
        mode = [] if "headless-shell" in binary else ["--headless=new"]
        running = await playwright.chromium.launch(executable_path=binary, args=[*FLAGS, *mode])
        try:
            yield running
        finally:
            await running.close()


class Person:
    """User of the dashboard, at a browser."""

    def __init__(self, context: BrowserContext, page: Page, url: str) -> None:
        self.context = context
        self.page = page
        self.url = url
        """Address of the server, with the path at which it is mounted."""
        self.faults: list[str] = []
        """Errors of the console, violations of the content security policy, dialogs, and requests to other servers."""

    async def visit(self, path: str) -> None:
        """Open a page of the server."""
        await self.page.goto(self.url + path)

    async def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            await self.page.keyboard.press(key)

    async def violations(self) -> list[str]:
        """Return what axe finds on the page in both themes, one line for each element."""
        # A script from the debugger is not bound by the policy of the page.
        await self.page.emulate_media(color_scheme="light", reduced_motion="reduce")
        await self.page.evaluate(AXE.read_text())
        violations: list[str] = await self.page.evaluate(_VIOLATIONS, {"resultTypes": ["violations"]})
        await self.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        of_colours = {"resultTypes": ["violations"], "runOnly": ["color-contrast"]}
        return [*violations, *await self.page.evaluate(_VIOLATIONS, of_colours)]


@asynccontextmanager
async def person(running: Browser, url: str, **options: Any) -> AsyncIterator[Person]:
    """Yield somebody at a new browser context; after the block, fail if anything went wrong in it."""
    context = await running.new_context(**({"viewport": DESKTOP} | options))
    context.set_default_timeout(PATIENCE_MS)
    visitor = Person(context, await context.new_page(), url)
    _watch(context, visitor.faults, re.match(r"https?://[^/]+", url)[0])  # type: ignore[index]
    try:
        yield visitor
    finally:
        await context.close()
    assert visitor.faults == [], visitor.faults


def _watch(context: BrowserContext, faults: list[str], origin: str) -> None:
    """Keep what no page may do."""

    def check_request(request: Request) -> None:
        if not request.url.startswith((origin + "/", "data:", "blob:")):
            faults.append(f"request to {request.url}")

    context.on("request", check_request)
    context.on("weberror", lambda error: faults.append(f"error: {error.error}"))
    context.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
    context.on(
        "console",
        lambda message: (
            faults.append(f"{message.type}: {message.text}")
            if message.type in {"error", "warning"} and not _OF_A_STATUS.match(message.text)
            else None
        ),
    )


class Enter(Protocol):
    """Function that lets somebody enter by a new browser context; see the fixture `enter`."""

    async def __call__(self, name: str = "", role: Role = "reviewer", **options: Any) -> Person:
        """Sign in as a new user if there is a name."""
        ...


async def sign_in(services: Services, visitor: Person, name: str, role: Role = "reviewer") -> str:
    """Sign in with a link as a new user, and return the email."""
    email = f"{name}@example.com"
    user = await create_user(services, email, role)
    await visitor.visit(await sign_in_link(services, user))
    return email
