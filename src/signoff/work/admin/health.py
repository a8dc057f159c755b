"""Health: whether a model can be reached now, at each of its endpoints."""

from __future__ import annotations

from typing import Any

from signoff.core.model import Model, is_plain
from signoff.core.wire import when
from signoff.runtime.pools import Sight, spot_name
from signoff.work.admin.models import health_of
from signoff.work.services import Desk

SECOND = 1_000_000


async def full_health_of(desk: Desk, model: Model) -> dict[str, Any]:
    """How the model is; of one that is not in one place alone each endpoint, as this process sees it."""
    if is_plain(model):
        return await health_of(desk, model)
    pool = desk.pools.of(model)
    endpoints = [await _seen(desk, sight) for sight in pool.sights()]
    well = [each for each in endpoints if each["ok"]]
    detail = f"{len(well)} of {len(endpoints)} endpoints"
    return {"ok": bool(well), "detail": detail, "waiting": pool.waiting, "endpoints": endpoints}


async def _seen(desk: Desk, sight: Sight) -> dict[str, Any]:
    rests = sight.rests_seconds
    until = None if rests is None else when(desk.clock() + round(rests * SECOND))
    told: dict[str, Any] = {"endpoint": spot_name(sight.model), "load": sight.load, "state": sight.state}
    return told | {"resting_until": until} | await health_of(desk, sight.model)


async def ready(desk: Desk) -> tuple[bool, dict[str, bool]]:
    """Whether it can, and each part with whether it answers. Without the broker work begins later, but it is done;
    a stream that is not listened to by this process waits where it is.
    """
    parts = {"store": await desk.store.ready(), "broker": desk.broker.is_connected}
    streams = {f"stream:{name}": listening.ok for name, listening in desk.streams.listening.items()}
    return parts["store"], parts | streams
