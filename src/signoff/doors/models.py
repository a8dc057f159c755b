"""The native door to models: `/api/models`, for admins."""

from __future__ import annotations

import shlex
from typing import Any, Literal
from urllib.parse import quote

import msgspec
from litestar import Request, Response, Router, delete, get, patch, post
from litestar.params import FromPath, FromQuery

from signoff.core.cache import CacheRule
from signoff.core.model import Balance, EndpointConfig, Model, ModelKind, with_changes
from signoff.core.policy import Review
from signoff.doors.http import InjectedCaller, InjectedServices, InjectedSettings, decoded, scope_of, takes_commands
from signoff.errors import BadRequest, SignoffError
from signoff.work.admin.health import endpoint_health
from signoff.work.admin.models import (
    ModelStatus,
    add_model,
    change_model,
    get_model,
    list_models,
    remove_model,
    start_model,
    stop_model,
)
from signoff.work.admin.registry import ModelKeys
from signoff.work.admin.try_model import try_model

Operation = Literal["try", "start", "stop"]
Timeout = Literal["connect_seconds", "first_byte_seconds", "between_chunks_seconds", "total_seconds"]
Limit = Literal["memory_mb", "open_files", "nice"]


class EndpointDescription(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One address of several. One that was there before keeps its key unless another is given."""

    url: str
    upstream_model: str | None = None
    max_parallel: int | None = None
    key: str | None = None


class ModelDescription(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a model is to be; `command` is a line or its words, `key` the upstream's, which is never shown again."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    kind: ModelKind | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType | None = msgspec.UNSET
    upstream_model: str | msgspec.UnsetType | None = msgspec.UNSET
    command: list[str] | str | msgspec.UnsetType = msgspec.UNSET
    serve: bool | msgspec.UnsetType = msgspec.UNSET
    idle_seconds: float | msgspec.UnsetType = msgspec.UNSET
    start_seconds: float | msgspec.UnsetType = msgspec.UNSET
    timeouts: dict[Timeout, float] | msgspec.UnsetType = msgspec.UNSET
    limits: dict[Limit, int | None] | msgspec.UnsetType = msgspec.UNSET
    attempts: int | msgspec.UnsetType | None = msgspec.UNSET
    review: Review | msgspec.UnsetType | None = msgspec.UNSET
    coalesce: bool | msgspec.UnsetType | None = msgspec.UNSET
    default: bool | msgspec.UnsetType = msgspec.UNSET
    cache: CacheRule | msgspec.UnsetType | None = msgspec.UNSET
    endpoints: list[EndpointDescription] | msgspec.UnsetType = msgspec.UNSET
    replicas: int | msgspec.UnsetType = msgspec.UNSET
    balance: Balance | msgspec.UnsetType = msgspec.UNSET
    max_parallel: int | msgspec.UnsetType | None = msgspec.UNSET
    max_waiting: int | msgspec.UnsetType = msgspec.UNSET
    queue_seconds: float | msgspec.UnsetType = msgspec.UNSET
    fallbacks: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    key: str | msgspec.UnsetType = msgspec.UNSET


@get("/", summary="List models")
async def listed(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Every model, registered ones first."""
    return {"data": [_as_seen(seen) for seen in await list_models(services, caller)]}


@post("/", status_code=201, summary="Register a model")
async def create(
    request: Request[Any, Any, Any], services: InjectedServices, door_settings: InjectedSettings, caller: InjectedCaller
) -> Response[dict[str, Any]]:
    """The model, which every process knows within a second."""
    changes, secrets = _decoded(await request.body())
    if not {"name", "kind"} <= changes.keys():
        raise BadRequest("A model has a name and a kind.")
    model = with_changes(Model(name=changes["name"], kind=changes["kind"]), changes)
    commands = takes_commands(door_settings, scope_of(request))
    await add_model(services, caller, model, secrets, commands=commands, is_new=True)
    seen = await get_model(services, caller, model.name)
    return Response(_as_seen(seen), headers={"location": f"/api/models/{quote(model.name)}"})


@get("/{name:path}", summary="Look at a model, or at its health")
async def one(
    services: InjectedServices, caller: InjectedCaller, name: FromPath[str], health: FromQuery[bool | None] = None
) -> dict[str, Any]:
    """The model; with `health`, whether it can be reached now."""
    seen = await get_model(services, caller, name.removeprefix("/"))
    return _as_seen(seen) | ({"health": await endpoint_health(services, seen.model)} if health else {})


@patch("/{name:path}", summary="Change a model")
async def changed(
    request: Request[Any, Any, Any],
    services: InjectedServices,
    door_settings: InjectedSettings,
    caller: InjectedCaller,
    name: FromPath[str],
) -> dict[str, Any]:
    """The model, with what was given; all else stays."""
    changes, secrets = _decoded(await request.body())
    commands = takes_commands(door_settings, scope_of(request))
    await change_model(services, caller, name.removeprefix("/"), changes, secrets, commands=commands)
    return _as_seen(await get_model(services, caller, name.removeprefix("/")))


@delete("/{name:path}", status_code=204, summary="Forget a model")
async def removed(services: InjectedServices, caller: InjectedCaller, name: FromPath[str]) -> None:
    """Nobody is sent there any more; jobs of it that wait will fail."""
    await remove_model(services, caller, name.removeprefix("/"))


@post("/{name:path}", status_code=200, summary="Try a model with one request, or start or stop its process")
async def tried(
    request: Request[Any, Any, Any],
    services: InjectedServices,
    caller: InjectedCaller,
    name: FromPath[str],
    operation: FromQuery[Operation] = "try",
) -> dict[str, Any]:
    """What it answered and how long it took, or the error that a caller would get; the model, for another operation."""
    if operation != "try":
        act = start_model if operation == "start" else stop_model
        return _as_seen(await act(services, caller, name.removeprefix("/")))
    body = await request.body() or b'"Hello."'
    began = services.clock()
    try:
        answer = await try_model(services, caller, name.removeprefix("/"), body)
        told = {"ok": True, "answer": msgspec.Raw(answer)}
    except SignoffError as error:
        if error.status in {400, 401, 403} or error.code == "model_not_found":
            raise
        told = {"ok": False, "error": {"code": error.code, "status": error.status, "message": error.message}}
    return told | {"seconds": (services.clock() - began) / 1_000_000}


def _decoded(body: bytes) -> tuple[dict[str, Any], ModelKeys]:
    """What is given of a model, and the keys."""
    given = msgspec.structs.asdict(decoded(body, ModelDescription, "This is not a model"))
    changes = {name: value for name, value in given.items() if value is not msgspec.UNSET}
    secret = changes.pop("key", None)
    if "command" in changes:
        changes["command"] = _words(changes["command"])
    described: list[EndpointDescription] = changes.get("endpoints", [])
    keys = {(each.url, each.upstream_model): each.key for each in described if each.key}
    if "endpoints" in changes:
        changes["endpoints"] = tuple(
            EndpointConfig(url=each.url, upstream_model=each.upstream_model, max_parallel=each.max_parallel)
            for each in described
        )
    return changes, ModelKeys(secret, keys)


def _words(command: list[str] | str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command) if isinstance(command, str) else command)
    except ValueError as error:
        raise BadRequest(f"command cannot be read: {error}.") from None


def _as_seen(seen: ModelStatus) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(seen.model)
    has_key = told.pop("key_id") is not None
    told["endpoints"] = [each | {"has_key": each.pop("key_id") is not None} for each in told["endpoints"]]
    return told | {"has_key": has_key, "registered": seen.is_registered, "state": seen.state}


router = Router("/api/models", route_handlers=[listed, create, one, changed, removed, tried], tags=["models"])
