"""Health: of this server, and of each endpoint of a model."""

from typing import Any

from signoff.core.model import Model, needs_no_pool
from signoff.core.times import SECOND_US
from signoff.core.wire import format_time
from signoff.errors import Overloaded, SchemaOutdated
from signoff.runtime.pools import EndpointStatus, endpoint_name
from signoff.work.admin.models import model_health
from signoff.work.services import Services


async def endpoint_health(services: Services, model: Model) -> dict[str, Any]:
    """Return the health of a model as JSON values: `ok` and `detail`.

    For a model with several endpoints, limits or fallbacks, add `waiting` (requests in its queue) and `endpoints`,
    as this process sees them.
    """
    if needs_no_pool(model):
        return await model_health(services, model)
    pool = services.runtime.pools.of(model)
    endpoints = [await _endpoint_status(services, status) for status in pool.statuses()]
    healthy = [each for each in endpoints if each["ok"]]
    detail = f"{len(healthy)} of {len(endpoints)} endpoints"
    return {"ok": bool(healthy), "detail": detail, "waiting": pool.waiting, "endpoints": endpoints}


async def _endpoint_status(services: Services, status: EndpointStatus) -> dict[str, Any]:
    cooldown = status.cooldown_seconds
    until = None if cooldown is None else format_time(services.clock() + round(cooldown * SECOND_US))
    fields: dict[str, Any] = {"endpoint": endpoint_name(status.model), "load": status.load, "state": status.state}
    result = fields | {"resting_until": until, "fault": status.fault} | await model_health(services, status.model)
    return result if status.state != "resting" else result | {"ok": False}


async def check_readiness(services: Services, *, with_names: bool) -> tuple[bool, dict[str, bool | int | str]]:
    """Return True if this server can take requests, and the state of each component by name.

    Without `with_names`, streams are only counted: `streams`, and `streams_listening`, those that are listened to.
    A server that stops is not ready: `stopping`. Otherwise, only the store is needed, with a `schema` that this version
    works with: without the broker, workers find jobs later; without a listener, messages wait in the stream.
    """
    has_store, statuses = await services.store.is_ready(), services.caches.streams.statuses
    schema_fault = await _schema_fault(services) if has_store else None
    is_ready = has_store and schema_fault is None and not services.runtime.shutdown.is_unready
    components: dict[str, bool | int | str] = {"store": has_store, "broker": services.adapters.broker.is_connected}
    if schema_fault is not None:
        components["schema"] = schema_fault
    if services.runtime.shutdown.is_unready:
        components["stopping"] = True
    if (redis := services.adapters.deliverers.get("redis")) is not None:
        components["redis"] = await redis.is_available()
    if with_names:
        return is_ready, components | {f"stream:{name}": listening.ok for name, listening in statuses.items()}
    listening = sum(status.ok for status in statuses.values())
    return is_ready, components | ({"streams": len(statuses), "streams_listening": listening} if statuses else {})


async def _schema_fault(services: Services) -> str | None:
    """Return why this version does not work with the schema, to which another process may have migrated it."""
    try:
        await services.store.check_schema()
    except SchemaOutdated as error:
        return error.message
    except Overloaded:  # the store has just become unavailable, which the next check reports
        return None
    return None
