"""Manage: what admins do with models at a door, and what anybody may see of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from signoff.core.access import Caller, check_admin, may_review
from signoff.core.allow_list import MODEL_ADDRESSES
from signoff.core.log import LogLine
from signoff.core.model import Model, endpoints_of, with_changes
from signoff.engine import ProcessEngine, State
from signoff.errors import AddressRefused, BadRequest, Forbidden, ModelNotFound, Overloaded
from signoff.infra.ssrf import blocked_reason, probe
from signoff.work.admin.registry import NO_MODEL_KEYS, ModelKeys, register_model, unregister_model
from signoff.work.services import Services

HEALTH_SECONDS = 3
BEST: tuple[State, ...] = ("ready", "busy", "starting", "stopped", "failed")


class ModelStatus(msgspec.Struct, frozen=True):
    """A model, whether it was registered or always exists, and how its process is, where it has one."""

    model: Model
    is_registered: bool
    state: State | None


async def list_models(services: Services, caller: Caller) -> list[ModelStatus]:
    """Every model, registered ones first. Raises Forbidden."""
    check_admin(caller)
    registered = {model.name for model in await services.store.catalog.models()}
    return [_seen(services, model, model.name in registered) for model in await services.caches.models.all()]


async def get_model(services: Services, caller: Caller, name: str) -> ModelStatus:
    """The model of exactly that name. Raises Forbidden, ModelNotFound."""
    found = next((seen for seen in await list_models(services, caller) if seen.model.name == name), None)
    if found is None:
        raise ModelNotFound(f"There is no model {name!r}.")
    return found


def _seen(services: Services, model: Model, is_registered: bool) -> ModelStatus:  # noqa: FBT001
    engine = services.adapters.engines.get(model.kind)
    if not isinstance(engine, ProcessEngine):
        return ModelStatus(model, is_registered, None)
    # The best of its replicas: what a caller finds.
    states = {engine.process_state(each) for each in endpoints_of(model)}
    return ModelStatus(model, is_registered, next(state for state in BEST if state in states))


async def model_health(services: Services, model: Model) -> dict[str, Any]:
    """Whether the model can be reached now, and what is wrong if it cannot; nothing is asked of it."""
    state = _seen(services, model, is_registered=True).state
    if state is not None:
        return {"ok": state != "failed", "detail": state}
    if model.url is None:
        return {"ok": True, "detail": "always there"}
    parts = urlsplit(model.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(min(model.timeouts.connect_seconds, HEALTH_SECONDS)):
            await probe(model.url, port, MODEL_ADDRESSES)
    except AddressRefused as error:
        return {"ok": False, "detail": error.message}
    except (OSError, ValueError) as error:
        if (denial := blocked_reason(error)) is not None:
            return {"ok": False, "detail": denial}
        return {"ok": False, "detail": f"cannot be connected to: {type(error).__name__}"}
    return {"ok": True, "detail": "takes connections"}


async def start_model(services: Services, caller: Caller, name: str) -> ModelStatus:
    """The model, whose process is ready on this host. Raises Forbidden, ModelNotFound, BadRequest, ModelUnreachable."""
    seen = await get_model(services, caller, name)
    for each in endpoints_of(seen.model):
        await _runner(services, each).start_model(each)
    return await get_model(services, caller, name)


async def stop_model(services: Services, caller: Caller, name: str) -> ModelStatus:
    """The model, whose process on this host was ended; whoever waited for it gets an error, and the next request starts
    it again. Raises Forbidden, ModelNotFound, BadRequest, Overloaded.
    """
    seen = await get_model(services, caller, name)
    await end_process(services, seen.model)
    return await get_model(services, caller, name)


async def end_process(services: Services, model: Model) -> None:
    """Ends the model's process on this host. Raises BadRequest, Overloaded."""
    stopped = [await _runner(services, each).stop_model(each) for each in endpoints_of(model)]
    if not all(stopped):
        raise Overloaded(f"The process of the model {model.name} has not ended yet.")


def _runner(services: Services, model: Model) -> ProcessEngine:
    engine = services.adapters.engines.get(model.kind)
    if isinstance(engine, ProcessEngine) and model.command:
        return engine
    raise BadRequest(f"The model {model.name} is no process here: there is nothing to start or stop.")


async def change_model(
    services: Services,
    caller: Caller,
    name: str,
    changes: Mapping[str, Any],
    secrets: ModelKeys,
    *,
    commands: bool,
) -> None:
    """Registers the model anew with these changes, as `with_changes` reads them, under its name.

    Raises Forbidden, ModelNotFound, BadRequest.
    """
    seen = await get_model(services, caller, name)
    if not seen.is_registered:
        raise ModelNotFound(f"There is no registered model {name!r}.")
    if changes.get("name", name) != name:
        raise BadRequest("A model keeps its name: register another one, and remove this one.")
    changed = with_changes(seen.model, changes)
    is_as_it_was = (changed.command, changed.serve) == (seen.model.command, seen.model.serve)
    await add_model(services, caller, changed, secrets, commands=commands or is_as_it_was)


async def add_model(
    services: Services,
    caller: Caller,
    model: Model,
    secrets: ModelKeys = NO_MODEL_KEYS,
    *,
    commands: bool,
    is_new: bool = False,
) -> None:
    """Registers a model, or changes one unless it `is_new`. Raises Forbidden, BadRequest, AddressRefused, Conflict.

    `commands`: whether this caller's way here is one on which programs may be named.
    """
    check_admin(caller)
    if model.command and not commands:
        raise Forbidden(
            "A command is taken by a server that listens on a loopback address, or with allow_remote_commands; "
            "`signoff model add` takes it always."
        )
    await register_model(services, model, secrets, is_new=is_new)


async def remove_model(services: Services, caller: Caller, name: str) -> None:
    """Takes a registered model out of the catalog. Raises Forbidden, ModelNotFound."""
    check_admin(caller)
    await unregister_model(services, name)


async def read_model_log(services: Services, caller: Caller, name: str) -> Sequence[LogLine]:
    """What the model wrote and how it failed, on any host: it may quote anybody. Raises Forbidden, ModelNotFound."""
    if not may_review(caller):
        raise Forbidden("Only an admin or a reviewer may read what a model wrote.")
    return await services.runtime.logs.read((await services.caches.models.find(name)).name)


async def clear_model_log(services: Services, caller: Caller, name: str) -> None:
    """Empties that log. Raises Forbidden, ModelNotFound."""
    check_admin(caller)
    await services.runtime.logs.clean((await services.caches.models.find(name)).name)
