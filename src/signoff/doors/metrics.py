"""Metrics for Prometheus, for callers with the token of the setting `metrics_token`, and for admins."""

import hmac

from litestar import MediaType, Response, Router, get

from signoff.core.access import check_admin
from signoff.doors.callers import caller_of
from signoff.doors.dependencies import AnyRequest, InjectedServices, InjectedSettings, scope_of
from signoff.doors.http import DoorSettings, Scope, header
from signoff.work.admin.metrics import render_metrics


@get("/metrics", summary="Get the metrics of this process", media_type=MediaType.TEXT)
async def get_metrics(
    request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings
) -> Response[bytes]:
    """Return the metrics of the process that answers, in the text format of Prometheus or as OpenMetrics."""
    scope = scope_of(request)
    if not _has_metrics_token(door_settings, scope):
        check_admin(await caller_of(services, door_settings, scope))
    body, content_type = await render_metrics(services, header(scope, b"accept") or "")
    return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})


def _has_metrics_token(door_settings: DoorSettings, scope: Scope) -> bool:
    expected, authorization = door_settings.metrics_token, header(scope, b"authorization") or ""
    return expected is not None and hmac.compare_digest(authorization.encode(), f"Bearer {expected}".encode())


router = Router("/", route_handlers=[get_metrics], tags=["health"])
