"""The port for metrics of one process: it serves `GET /metrics` without a token, for workers and several servers."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import structlog

from signoff.setting_sources import BadSettings
from signoff.settings import Settings
from signoff.work.admin.metrics import render_metrics
from signoff.work.services import Services

if TYPE_CHECKING:
    from aiohttp import web

# Number of ports, from the setting on, of which each process of a host takes one that is free.
PORTS = 64
log = structlog.get_logger()


@contextlib.asynccontextmanager
async def serve_metrics(services: Services, settings: Settings) -> AsyncGenerator[None]:
    """Serve the metrics of this process for the duration of the block, if `metrics_port` is set. Raises BadSettings."""
    if settings.metrics_port is None:
        yield
        return
    from aiohttp import web

    async def get_metrics(request: web.Request) -> web.Response:
        body, content_type = await render_metrics(services, request.headers.get("accept", ""))
        return web.Response(body=body, headers={"content-type": content_type, "cache-control": "no-store"})

    application = web.Application()
    application.router.add_get("/metrics", get_metrics)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        port = await _listen(runner, settings.metrics_host, settings.metrics_port)
        log.info("metrics_served", host=settings.metrics_host, port=port)
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, first: int) -> int:
    """Listen on the first free port from `first` on, and return it. Raises BadSettings."""
    from aiohttp import web

    for port in range(first, min(first + PORTS, 65536)):
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise BadSettings(f"`metrics_port`: cannot listen on {host}:{port}: {error.strerror}.") from None
        else:
            return port
    raise BadSettings(
        f"`metrics_port`: no port from {first} to {first + PORTS - 1} of {host} is free; set another one."
    )
