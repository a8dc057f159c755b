"""The log of a model: what this server recorded about it, and what the model itself records."""

import asyncio
from collections.abc import Sequence

import msgspec

from signoff.core.access import Caller, check_admin, may_review
from signoff.core.log import LogLine
from signoff.core.model import Model, endpoints_of
from signoff.engine import OperationEngine
from signoff.errors import Forbidden
from signoff.work.services import Services


async def read_model_log(services: Services, caller: Caller, name: str) -> tuple[Sequence[LogLine], list[msgspec.Raw]]:
    """Return the lines of this deployment about the model, and the entries of the model's own log.

    For reviewers and admins only, as it may quote requests. Raises Forbidden, ModelNotFound.
    """
    if not may_review(caller):
        raise Forbidden("Only a reviewer or an admin may read the log of a model.")
    model = await services.caches.models.find(name)
    lines = await services.runtime.logs.read(model.name)
    return lines, [entry for log in await _operate(services, model, "getlogs") for entry in _entries_of(log)]


async def clear_model_log(services: Services, caller: Caller, name: str) -> None:
    """Delete the log of the model, and its own log if it has that operation. Raises Forbidden, ModelNotFound."""
    check_admin(caller)
    model = await services.caches.models.find(name)
    await services.runtime.logs.clean(model.name)
    await _operate(services, model, "cleanlogs")


async def _operate(services: Services, model: Model, operation: str) -> list[bytes]:
    """Ask each endpoint of the model for the operation; return the answers of those that have it."""
    engine = services.adapters.engines.get(model.kind)
    if not isinstance(engine, OperationEngine):
        return []

    async def operate(endpoint: Model) -> bytes | None:
        key = None if endpoint.key_id is None else await services.caches.keys.secret(endpoint.key_id)
        return await engine.operate(endpoint, operation, key)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(operate(endpoint)) for endpoint in endpoints_of(model)]
    return [answer for task in tasks if (answer := task.result()) is not None]


def _entries_of(log: bytes) -> list[msgspec.Raw]:
    """Return the entries of a log, which is a JSON array; none for other JSON, as a model may answer at any path."""
    try:
        return msgspec.json.decode(log, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        return []
