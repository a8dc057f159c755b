"""ASGI application `signoff.asgi:app`: the whole server, which can also be mounted into another application."""

import asyncio
import contextlib
import os

import structlog

from signoff.doors.http import ASGIApp, Receive, Scope, Send
from signoff.infra.logging import to_stderr
from signoff.infra.memory import collect_seldom
from signoff.server.bootstrap import run_services
from signoff.server.http import make_router
from signoff.settings import Settings, load
from signoff.work.pipelines.functions import register_missing_builtins


class Application:
    """ASGI application that opens its services at server start (ASGI lifespan), or else at the first request.

    Args:
        settings: Settings to use; loaded from the environment and the settings file if None.
        work: True to run a worker in this process; if None, unless `SIGNOFF_NO_WORK` is `1`.
        owns_process: True to set how this process collects garbage.
    """

    def __init__(
        self, settings: Settings | None = None, *, work: bool | None = None, owns_process: bool = False
    ) -> None:
        self._settings = settings
        self._work = os.environ.get("SIGNOFF_NO_WORK") != "1" if work is None else work
        self._owns_process = owns_process
        self._router: ASGIApp | None = None
        self._exit_stack = contextlib.AsyncExitStack()
        self._start_lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one lifespan or HTTP connection, as ASGI specifies."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["type"] == "http":
            router = self._router or await self._start()
            await router(_strip_root_path(scope), receive, send)

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except Exception as error:  # noqa: BLE001 -- the server prints it and ends
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._exit_stack.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> ASGIApp:
        async with self._start_lock:
            if self._router is None:
                settings = self._settings or load()
                if (warning := settings.anonymous_warning) is not None:
                    log.warning("anonymous_admin", warning=warning)
                services = await self._exit_stack.enter_async_context(run_services(settings, work=self._work))
                await register_missing_builtins(services)
                self._router = make_router(services, settings)
                if self._owns_process:
                    collect_seldom()
        return self._router


def _strip_root_path(scope: Scope) -> Scope:
    """Return the scope with its path relative to the mount point of this application."""
    root = scope.get("root_path", "")
    if not root or not scope["path"].startswith(root):
        return scope
    return {**scope, "path": scope["path"][len(root) :] or "/", "root_path": ""}


log = structlog.get_logger()
to_stderr()
app = Application()
# The application of `signoff serve`, which has the process for itself.
served = Application(owns_process=True)
