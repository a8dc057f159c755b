"""`signoff.asgi:app`: the whole server as one ASGI application, which can be mounted into another one."""

from __future__ import annotations

import asyncio
import contextlib
import os

from signoff.doors.http import ASGIApp, Receive, Scope, Send
from signoff.infra.logging import to_stderr
from signoff.server.bootstrap import make_router, run_services
from signoff.settings import Settings, load


class Application:
    """Opens the desk when the server starts (ASGI's lifespan), or at the first request where there is no lifespan."""

    def __init__(self, settings: Settings | None = None, *, work: bool | None = None) -> None:
        self._settings = settings
        self._work = os.environ.get("SIGNOFF_NO_WORK") != "1" if work is None else work
        self._front: ASGIApp | None = None
        self._open = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One scope."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            front = self._front or await self._start()
            await front(_unmounted(scope), receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except Exception as error:  # noqa: BLE001 -- the server prints it and ends
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._open.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> ASGIApp:
        async with self._opening:
            if self._front is None:
                settings = self._settings or load()
                services = await self._open.enter_async_context(run_services(settings, work=self._work))
                self._front = make_router(services, settings)
        return self._front


def _unmounted(scope: Scope) -> Scope:
    """The scope with the path below where this application is mounted."""
    root = scope.get("root_path", "")
    if not root or not scope["path"].startswith(root):
        return scope
    return {**scope, "path": scope["path"][len(root) :] or "/", "root_path": ""}


to_stderr()
app = Application()
