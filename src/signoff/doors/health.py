"""Health probes: liveness of the process, and readiness to serve requests."""

from litestar import MediaType, Response, Router, get

from signoff.doors.dependencies import InjectedServices
from signoff.work.admin import health


@get("/health/live", summary="Check that the process runs", media_type=MediaType.TEXT)
async def get_liveness() -> str:
    """Return `ok`."""
    return "ok"


@get("/health/ready", summary="Check that the server can serve requests")
async def get_readiness(services: InjectedServices) -> Response[dict[str, bool]]:
    """Return 200 if the server can serve requests, else 503; the body says for each part whether it responds."""
    is_ready, parts = await health.ready(services)
    return Response(parts, status_code=200 if is_ready else 503)


router = Router("/", route_handlers=[get_liveness, get_readiness], tags=["health"])
