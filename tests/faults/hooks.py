"""A receiver of webhooks that often fails, and writes down what it got and what it answered."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from random import Random

import msgspec
from aiohttp import web

from faults.history import History

SLOW_SECONDS = 3.0


@contextlib.asynccontextmanager
async def receiving(history: History, random_float: Random) -> AsyncIterator[str]:
    """The address of the receiver, while the block runs."""

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        told = msgspec.json.decode(body)
        about = {"id": request.headers["webhook-id"], "job": told["data"]["job_id"], "kind": told["type"]}
        behaviour = random_float.choices(["take", "fail", "cut", "slow"], [80, 10, 7, 3])[0]
        taken = behaviour == "take"
        history.tell("hooked", **about, digest=hashlib.sha256(body).hexdigest()[:16], taken=taken)
        if behaviour == "cut" and request.transport is not None:
            request.transport.abort()
        if behaviour == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        return web.Response(status=200 if taken else 500)

    runner = web.ServerRunner(web.Server(receive), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    finally:
        await runner.cleanup()
