"""Health: whether a model can be reached now, at each of its endpoints."""

from __future__ import annotations

from typing import Any

from signoff.core.model import Model, has_single_endpoint
from signoff.core.wire import format_time
from signoff.runtime.pools import EndpointStatus, endpoint_name
from signoff.work.admin.models import model_health
from signoff.work.services import Services

SECOND = 1_000_000


async def endpoint_health(services: Services, model: Model) -> dict[str, Any]:
    """How the model is; of one that is not in one place alone each endpoint, as this process sees it."""
    if has_single_endpoint(model):
        return await model_health(services, model)
    pool = services.runtime.pools.of(model)
    endpoints = [await _seen(services, status) for status in pool.statuses()]
    well = [each for each in endpoints if each["ok"]]
    detail = f"{len(well)} of {len(endpoints)} endpoints"
    return {"ok": bool(well), "detail": detail, "waiting": pool.waiting, "endpoints": endpoints}


async def _seen(services: Services, status: EndpointStatus) -> dict[str, Any]:
    rests = status.cooldown_seconds
    until = None if rests is None else format_time(services.clock() + round(rests * SECOND))
    told: dict[str, Any] = {"endpoint": endpoint_name(status.model), "load": status.load, "state": status.state}
    return told | {"resting_until": until} | await model_health(services, status.model)


async def ready(services: Services) -> tuple[bool, dict[str, bool]]:
    """Whether it can, and each part with whether it answers. Without the broker work begins later, but it is done;
    a stream that is not listened to by this process waits where it is.
    """
    parts = {"store": await services.store.ready(), "broker": services.adapters.broker.is_connected}
    streams = {f"stream:{name}": listening.ok for name, listening in services.caches.streams.statuses.items()}
    return parts["store"], parts | streams
