"""Fixtures of the tests in a real browser: one browser and one server for each module, one context for each person."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # the other tests need none of these
    from playwright.async_api import Browser

    from signoff.core.access import Role
    from support.browser import Person
    from support.live_server import Live


@pytest.fixture(scope="module", name="chrome")
async def run_browser(chromium: str, anyio_backend: object) -> AsyncIterator[Browser]:
    """Yield a running browser."""
    from support.browser import browser

    del anyio_backend
    async with browser(chromium) as running:
        yield running


@pytest.fixture(scope="module", name="server")
async def start_server(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[Live]:
    """Yield a server with the embedded defaults, where nobody reviews what they asked for themselves."""
    from support.live_server import live

    del anyio_backend
    async with live(tmp_path_factory.mktemp("browser"), log_before_answer=True) as server:
        yield server


@pytest.fixture(name="desk")
async def start_desk(tmp_path: Path) -> AsyncIterator[Live]:
    """Yield a server for one test, whose queue has nothing of others; the test lets verdicts take effect."""
    from support.live_server import live

    async with live(tmp_path, release_after_seconds=3600) as server:
        yield server


@pytest.fixture
async def enter(chrome: Browser, server: Live) -> AsyncIterator[Callable[..., Awaitable[Person]]]:
    """Yield a function that lets somebody enter by a new browser context, signed in if they have a name."""
    from support.browser import person, sign_in

    async with AsyncExitStack() as stack:

        async def enter_as(name: str = "", role: Role = "reviewer", **options: Any) -> Person:
            visitor = await stack.enter_async_context(person(chrome, server.url, **options))
            if name:
                await sign_in(server.services, visitor, name, role)
            return visitor

        yield enter_as
