"""ASGI application `signoff.asgi:app`: the whole server, which can also be mounted into another application."""

import asyncio
import os
import re

from signoff.doors.http import MOUNT, ASGIApp, Header, Message, Receive, Scope, Send
from signoff.infra.logging import log_to_stderr
from signoff.infra.memory import collect_seldom, return_large_blocks
from signoff.server.bootstrap import run_services
from signoff.server.http import make_router
from signoff.server.serving import SHUTDOWN
from signoff.server.start_warnings import log_page_warnings, log_warnings
from signoff.settings import Settings, load
from signoff.work.pipelines.functions import register_missing_builtins
from signoff.work.services import Services

# Headers of responses with paths on this server: `</jobs?…>; rel="next"` and `/api/jobs/…`.
PATH_HEADERS = {b"location": re.compile(rb"^(?=/(?!/))"), b"link": re.compile(rb"(?<=<)(?=/(?!/))")}


class Application:
    """ASGI application that opens its services at server start (ASGI lifespan), or else at the first request.

    They are closed when the server says that it stops, or else when its event loop ends.

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
        self._start_lock = asyncio.Lock()
        self._must_close = asyncio.Event()
        self._opened: asyncio.Future[ASGIApp] | None = None
        self.owner: asyncio.Task[None] | None = None
        """Task that keeps the services open; None before they are opened."""
        self.services: Services | None = None
        """The services while they are open."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one lifespan or HTTP connection, as ASGI specifies."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(scope, receive, send)
        elif scope["type"] == "http":
            router = self._router or await self._start()
            if scope.get("root_path"):
                scope, send = _below_mount(scope, send)
            await router(scope, receive, send)

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
            if self.services is not None and "state" in scope:
                scope["state"][SHUTDOWN] = self.services.runtime.shutdown
        except Exception as error:  # noqa: BLE001 -- the server prints it and ends
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> ASGIApp:
        async with self._start_lock:
            if self._opened is None or (self._opened.done() and self._opened.exception()):
                self._opened = asyncio.get_running_loop().create_future()
                # A task of its own, as the services outlive the request that opens them, and close where they opened.
                self.owner = asyncio.create_task(self._own_services(self._opened))
            self._router = router = await asyncio.shield(self._opened)
        return router

    async def _own_services(self, opened: asyncio.Future[ASGIApp]) -> None:
        """Keep the services open until `_must_close` is set or the event loop ends; `opened` gets the router."""
        try:
            settings = self._settings or load()
            async with run_services(settings, work=self._work) as services:
                self.services = services
                await register_missing_builtins(services)
                await log_warnings(services, settings)
                log_page_warnings()
                if self._owns_process:
                    collect_seldom()
                    return_large_blocks()
                opened.set_result(make_router(services, settings))
                await self._must_close.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error if isinstance(error, Exception) else RuntimeError("The start was cancelled."))

    async def close(self) -> None:
        """Close the services, if a server without ASGI lifespan has opened them."""
        self._must_close.set()
        if self.owner is not None:
            await self.owner


def _below_mount(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """Return the scope with its path relative to the mount point, and a `send` that puts that before paths in headers.

    Servers differ in whether `path` has the mount point in front (ASGI says so).
    """
    root: str = scope["root_path"].rstrip("/")
    path: str = scope["path"]
    is_prefix = path == root or path.startswith(f"{root}/")
    inner = path[len(root) :] or "/" if is_prefix else path

    async def send_below_mount(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [_with_root(name, value, root.encode()) for name, value in message["headers"]]
        await send(message)

    return {**scope, "path": inner, "root_path": "", MOUNT: root}, send_below_mount


def _with_root(name: bytes, value: bytes, root: bytes) -> Header:
    pattern = PATH_HEADERS.get(name.lower())
    return (name, value if pattern is None else pattern.sub(lambda _: root, value, count=1))


log_to_stderr()
app = Application()
# The application of `signoff serve`, which has the process for itself.
served = Application(owns_process=True)
