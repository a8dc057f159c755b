"""Health probes: liveness of the process, and readiness to serve requests."""

import contextlib

from litestar import MediaType, Response, Router, get

from signoff.core.access import Caller
from signoff.doors.callers import caller_of
from signoff.doors.dependencies import AnyRequest, InjectedServices, InjectedSettings, scope_of
from signoff.errors import SignoffError
from signoff.work.admin import health


@get("/health/live", summary="Check that the process runs", media_type=MediaType.TEXT)
async def get_liveness() -> str:
    """Return `ok`."""
    return "ok"


@get("/health/ready", summary="Check that the server can serve requests")
async def get_readiness(
    request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings
) -> Response[dict[str, bool | int | str]]:
    """Return 200 if the server can serve requests, else 503; the body says for each part whether it responds.

    `schema` is there if the schema of the database does not fit this version, and says what to do.
    Only callers with a token see streams by name; others see how many there are, and how many are listened to.
    """
    caller: Caller | None = None
    with contextlib.suppress(SignoffError):
        caller = await caller_of(services, door_settings, scope_of(request))
    is_ready, parts = await health.check_readiness(services, with_names=caller is not None and caller.token_id != 0)
    return Response(parts, status_code=200 if is_ready else 503)


router = Router("/", route_handlers=[get_liveness, get_readiness], tags=["health"])
