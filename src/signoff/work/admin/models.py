"""Administration of models: list, change, start and stop them, and read their logs."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from signoff.core.access import Caller, check_admin, check_identified
from signoff.core.allow_list import MODEL_ADDRESSES
from signoff.core.model import Model, endpoints_of, with_changes
from signoff.engine import ProcessEngine, ProcessState
from signoff.errors import AddressRefused, BadRequest, Conflict, Forbidden, ModelNotFound, Overloaded
from signoff.work.admin.registry import NO_MODEL_KEYS, ModelKeys, register_model, unregister_model
from signoff.work.services import Services

HEALTH_SECONDS = 3
# Best first.
STATE_ORDER: tuple[ProcessState, ...] = ("ready", "busy", "starting", "stopped", "failed")


class ModelStatus(msgspec.Struct, frozen=True):
    """A model with the state of its process."""

    model: Model
    """The model."""
    is_registered: bool
    """True for a model in the catalog; False for a built-in one."""
    state: ProcessState | None
    """The state of the process on this host, the best of its replicas; None for a model without a process."""


async def list_models(services: Services, caller: Caller) -> list[ModelStatus]:
    """Return every model, registered ones first. Raises Forbidden."""
    check_admin(caller)
    registered = {model.name for model in await services.store.catalog.models()}
    return [_status_of(services, model, model.name in registered) for model in await services.caches.models.all()]


async def get_model(services: Services, caller: Caller, name: str) -> ModelStatus:
    """Return the model with exactly this name, such as `gpt-4` or `gpt-*`. Raises Forbidden, ModelNotFound."""
    status = next((status for status in await list_models(services, caller) if status.model.name == name), None)
    if status is None:
        raise ModelNotFound(f"There is no model {name!r}; list them with `GET /api/models`.")
    return status


def _status_of(services: Services, model: Model, is_registered: bool) -> ModelStatus:  # noqa: FBT001
    engine = services.adapters.engines.get(model.kind)
    if not isinstance(engine, ProcessEngine):
        return ModelStatus(model, is_registered, None)
    states = {engine.process_state(each) for each in endpoints_of(model)}
    return ModelStatus(model, is_registered, next(state for state in STATE_ORDER if state in states))


async def model_health(services: Services, model: Model) -> dict[str, Any]:
    """Return `{"ok", "detail"}` for the model; `detail` is a text for people.

    A process is ok unless it failed, because a stopped one starts with the next request. For a URL, a connection is
    opened, to the proxy if it has one, and its certificate is checked; no HTTP request is sent.
    """
    state = _status_of(services, model, is_registered=True).state
    if state is not None:
        return {"ok": state != "failed", "detail": state}
    if model.url is None:
        return {"ok": True, "detail": "always available"}
    from yarl import URL

    from signoff.infra.ssrf import blocked_reason, probe  # imports an HTTP client, which commands do not need
    from signoff.infra.tls import tls_fault

    try:
        url = URL(model.url)
        proxy = services.adapters.proxies.find(url)
        async with asyncio.timeout(min(model.timeouts.connect_seconds, HEALTH_SECONDS)):
            await probe(str((proxy or url).with_user(None)), (proxy or url).port or 80, MODEL_ADDRESSES)
    except AddressRefused as error:
        return {"ok": False, "detail": error.message}
    except (OSError, ValueError) as error:
        if (denial := blocked_reason(error)) is not None:
            return {"ok": False, "detail": denial}
        return {"ok": False, "detail": f"connection failed: {tls_fault(error) or type(error).__name__}"}
    return {"ok": True, "detail": "accepts connections" if proxy is None else "its proxy accepts connections"}


async def start_model(services: Services, caller: Caller, name: str) -> ModelStatus:
    """Start the processes of the model on this host, and return the model.

    Raises Unauthorized, Forbidden, ModelNotFound, BadRequest, ModelUnreachable.
    """
    check_identified(caller)
    status = await get_model(services, caller, name)
    for each in endpoints_of(status.model):
        await _process_engine(services, each).start_model(each)
    return await get_model(services, caller, name)


async def stop_model(services: Services, caller: Caller, name: str) -> ModelStatus:
    """Stop the processes of the model on this host, and return the model.

    Requests in progress fail; the next request starts the model again.
    Raises Unauthorized, Forbidden, ModelNotFound, BadRequest, Overloaded.
    """
    check_identified(caller)
    status = await get_model(services, caller, name)
    await end_process(services, status.model)
    return await get_model(services, caller, name)


async def end_process(services: Services, model: Model) -> None:
    """Stop the processes of the model on this host, for any caller.

    Raises BadRequest, and Overloaded if a process has not ended in time.
    """
    stopped = [await _process_engine(services, each).stop_model(each) for each in endpoints_of(model)]
    if not all(stopped):
        raise Overloaded(f"The process of the model {model.name} has not ended yet; try again.")


def _process_engine(services: Services, model: Model) -> ProcessEngine:
    engine = services.adapters.engines.get(model.kind)
    if isinstance(engine, ProcessEngine) and model.command:
        return engine
    raise BadRequest(f"The model {model.name} has no process that this server could start or stop.")


async def change_model(  # noqa: PLR0913 -- what to change, by whom, and from which state
    services: Services,
    caller: Caller,
    name: str,
    changes: Mapping[str, Any],
    secrets: ModelKeys,
    *,
    may_set_command: bool,
    expected_digest: str | None = None,
) -> None:
    """Change the given fields of a registered model.

    Args:
        services: The dependencies.
        caller: The caller, an admin.
        name: The name of the model, which cannot change.
        changes: Fields by name; others stay.
        secrets: New upstream keys; without them the model keeps its keys.
        may_set_command: True if the caller may set a command line; see `doors.callers.takes_commands`.
        expected_digest: The `model_digest` of the model that the changes were made from; None for any.

    Raises:
        Unauthorized: the caller is anonymous.
        Forbidden: the caller is not an admin, or may not set a command.
        ModelNotFound: no model has this name.
        Conflict: the model is built in.
        BadRequest: a field is invalid.
        AddressRefused: a URL is not allowed.
        VersionConflict: the model has another digest than `expected_digest`.
    """
    check_identified(caller)
    status = await get_model(services, caller, name)
    if not status.is_registered:
        raise Conflict(f"The model {name!r} is built in and cannot be changed; register one under another name.")
    if changes.get("name", name) != name:
        raise BadRequest(f"`name` must be {name!r}, as names cannot change (got {changes['name']!r}).")
    changed = with_changes(status.model, changes)
    keeps_command = (changed.command, changed.serve) == (status.model.command, status.model.serve)
    may_set_command = may_set_command or keeps_command
    await add_model(
        services, caller, changed, secrets, may_set_command=may_set_command, expected_digest=expected_digest
    )


async def add_model(  # noqa: PLR0913 -- what to store, for whom, and instead of which state
    services: Services,
    caller: Caller,
    model: Model,
    secrets: ModelKeys = NO_MODEL_KEYS,
    *,
    may_set_command: bool,
    is_new: bool = False,
    expected_digest: str | None = None,
) -> None:
    """Register a model, or replace the one of the same name unless `is_new`.

    Raises Unauthorized, Forbidden, BadRequest, AddressRefused, NameTaken, VersionConflict.

    Args:
        services: The dependencies.
        caller: The caller, an admin.
        model: The model.
        secrets: Keys of its upstreams.
        may_set_command: True if the caller may set a command line; see `doors.callers.takes_commands`.
        is_new: Raise NameTaken if there is a model of this name.
        expected_digest: Raise VersionConflict if the model of this name has another `model_digest`.
    """
    check_identified(caller)
    check_admin(caller)
    if model.command and not may_set_command:
        raise Forbidden(
            "A command can be set over HTTP only from this machine, at a loopback address and not through a proxy, or "
            "if `allow_remote_commands` is set; use `signoff model add`."
        )
    await register_model(services, model, secrets, is_new=is_new, expected_digest=expected_digest)


async def remove_model(services: Services, caller: Caller, name: str) -> None:
    """Remove a registered model from the catalog. Raises Unauthorized, Forbidden, ModelNotFound."""
    check_identified(caller)
    check_admin(caller)
    await unregister_model(services, name)
