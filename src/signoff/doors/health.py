"""Health: is the process there, and can it do its work?"""

from __future__ import annotations

from litestar import MediaType, Response, Router, get

from signoff.work.desk import Desk


@get("/health/live", summary="Is the process there?", media_type=MediaType.TEXT)
async def live() -> str:
    """It is."""
    return "ok"


@get("/health/ready", summary="Can it do its work?")
async def ready(desk: Desk) -> Response[dict[str, bool]]:
    """200 when the store answers, else 503."""
    store = await desk.store.ready()
    return Response({"store": store}, status_code=200 if store else 503)


router = Router("/", route_handlers=[live, ready], tags=["health"])
