"""Health: whether a model can be reached now, at each of its endpoints."""

from __future__ import annotations

from typing import Any

from signoff.core.target import Model, is_plain
from signoff.core.wire import when
from signoff.parts.pools import Sight, spot_name
from signoff.work.desk import Desk
from signoff.work.manage import health_of

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
