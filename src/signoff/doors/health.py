"""Health: is the process there, and can it do its work?"""

from __future__ import annotations

from litestar import MediaType, Response, Router, get

from signoff.doors.http import InjectedServices
from signoff.work.admin.health import ready as look_whether_ready


@get("/health/live", summary="Is the process there?", media_type=MediaType.TEXT)
async def live() -> str:
    """It is."""
    return "ok"


@get("/health/ready", summary="Can it do its work?")
async def ready(services: InjectedServices) -> Response[dict[str, bool]]:
    """200 when it can, else 503; with each part, and whether that answers."""
    can, parts = await look_whether_ready(services)
    return Response(parts, status_code=200 if can else 503)


router = Router("/", route_handlers=[live, ready], tags=["health"])
