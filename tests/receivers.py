"""A webhook's receiver for tests: a real HTTP server, which keeps what it gets and answers as it is told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from aiohttp import web

from live import until

SECRET = "whsec_" + base64.b64encode(b"a key of twenty-four bytes").decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"another key that is also quite long").decode()


class Got(NamedTuple):
    """One message."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The message's id."""
        return self.headers["webhook-id"]


class Receiver:
    """Answers with what `answers` has left, then with 200: a status, "cut", or a function to wait for first."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.answers: list[int | str | Callable[[Got], Awaitable[Any]]] = []
        self.url = ""

    async def receive(self, request: web.Request) -> web.Response:
        """One message."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        got = Got(request.path_qs, headers, await request.read())
        self.got.append(got)
        answer = self.answers.pop(0) if self.answers else 200
        if answer == "cut":
            assert request.transport is not None
            request.transport.abort()
        elif callable(answer):
            await answer(got)
        status = answer if isinstance(answer, int) else 200
        return web.Response(status=status, headers={"location": "/elsewhere"} if 300 <= status < 400 else {})

    async def gets(self, count: int = 1) -> list[Got]:
        """The messages, as soon as there are `count`."""

        async def look() -> list[Got] | None:
            return self.got if len(self.got) >= count else None

        return await until(look)


@contextlib.asynccontextmanager
async def receiving(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver on a free port; it is closed with the block."""
    receiver = Receiver()
    server = web.Server(receiver.receive)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    receiver.url = f"http://{host}:{runner.addresses[0][1]}/hook?token=t0ken"
    try:
        yield receiver
    finally:
        await runner.cleanup()


async def hang(_: Got) -> None:
    """Never answers."""
    await asyncio.Event().wait()
