"""The native API of models, for admins: `/api/models`."""

import shlex
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.params import FromPath, FromQuery, QueryParameter

from signoff.core.cache import CacheRule
from signoff.core.decode import check_required
from signoff.core.model import Balance, EndpointConfig, Model, ModelKind, with_changes
from signoff.core.reviews.policy import Review
from signoff.doors.callers import takes_commands
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, InjectedSettings, scope_of
from signoff.doors.http import parse_choice, parse_json
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

OPERATIONS = ("try", "start", "stop")
TimeoutName = Literal["connect_seconds", "first_byte_seconds", "between_chunks_seconds", "total_seconds"]
LimitName = Literal["memory_mb", "open_files", "nice"]


class EndpointDescription(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Endpoint of a model that has several."""

    url: str
    """Base URL of the endpoint."""
    upstream_model: str | None = None
    """Name of the model at this endpoint; None for the one of the model."""
    max_parallel: int | None = None
    """Maximum number of requests at the same time; None for the one of the model."""
    key: str | None = None
    """API key of the endpoint; None to keep the key that the same endpoint has already."""


class ModelDescription(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body that registers or changes a model; members that are left out keep their values.

    The members are those of `core.model.Model`, except that `command` is a command line or a list of its words, and
    that `key` is the API key of the upstream, which is never shown again.
    """

    name: str | msgspec.UnsetType = msgspec.UNSET
    kind: ModelKind | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType | None = msgspec.UNSET
    upstream_model: str | msgspec.UnsetType | None = msgspec.UNSET
    command: list[str] | str | msgspec.UnsetType = msgspec.UNSET
    serve: bool | msgspec.UnsetType = msgspec.UNSET
    idle_seconds: float | msgspec.UnsetType = msgspec.UNSET
    start_seconds: float | msgspec.UnsetType = msgspec.UNSET
    timeouts: dict[TimeoutName, float] | msgspec.UnsetType = msgspec.UNSET
    limits: dict[LimitName, int | None] | msgspec.UnsetType = msgspec.UNSET
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
    review_queue: str | msgspec.UnsetType | None = msgspec.UNSET
    pass_headers: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    routes: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    key: str | msgspec.UnsetType = msgspec.UNSET
    """API key of the upstream."""


@get("/", summary="List models")
async def get_models(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Return all models, registered ones first."""
    return {"data": [_model_json(status) for status in await list_models(services, caller)]}


@post("/", status_code=201, summary="Register a model")
async def post_model(
    request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings, caller: InjectedCaller
) -> Response[dict[str, Any]]:
    """Register a model; all processes know it within a second."""
    changes, keys = parse_model(await request.body())
    check_required(changes, "name", "kind")
    model = with_changes(Model(name=changes["name"], kind=changes["kind"]), changes)
    may_set_command = takes_commands(door_settings, scope_of(request))
    await add_model(services, caller, model, keys, may_set_command=may_set_command, is_new=True)
    status = await get_model(services, caller, model.name)
    return Response(_model_json(status), headers={"location": f"/api/models/{quote(model.name)}"})


@get("/{name:path}", summary="Get a model, or its health")
async def show_model(
    services: InjectedServices, caller: InjectedCaller, name: FromPath[str], health: FromQuery[bool | None] = None
) -> dict[str, Any]:
    """Return the model; with `health=true`, also the result of a connection test."""
    status = await get_model(services, caller, name.removeprefix("/"))
    return _model_json(status) | ({"health": await endpoint_health(services, status.model)} if health else {})


@patch("/{name:path}", summary="Change a model")
async def patch_model(
    request: AnyRequest,
    services: InjectedServices,
    door_settings: InjectedSettings,
    caller: InjectedCaller,
    name: FromPath[str],
) -> dict[str, Any]:
    """Change the members of the body; all others keep their values."""
    changes, keys = parse_model(await request.body())
    may_set_command = takes_commands(door_settings, scope_of(request))
    await change_model(services, caller, name.removeprefix("/"), changes, keys, may_set_command=may_set_command)
    return _model_json(await get_model(services, caller, name.removeprefix("/")))


@delete("/{name:path}", status_code=204, summary="Remove a model")
async def delete_model(services: InjectedServices, caller: InjectedCaller, name: FromPath[str]) -> None:
    """Remove a registered model; its waiting jobs will fail."""
    await remove_model(services, caller, name.removeprefix("/"))


@post("/{name:path}", status_code=200, summary="Test a model with one request, or start or stop its process")
async def post_operation(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    name: FromPath[str],
    operation: Annotated[str, QueryParameter(enum=OPERATIONS)] = "try",
) -> dict[str, Any]:
    """Test, start or stop a model.

    A test returns the answer, or the error that a caller would get, and the duration. The other operations return the
    model.
    """
    wanted = parse_choice("operation", operation, OPERATIONS)
    if wanted != "try":
        start_or_stop = start_model if wanted == "start" else stop_model
        return _model_json(await start_or_stop(services, caller, name.removeprefix("/")))
    body = await request.body() or b'"Hello."'
    began = services.clock()
    try:
        answer = await try_model(services, caller, name.removeprefix("/"), body)
        result = {"ok": True, "answer": msgspec.Raw(answer)}
    except SignoffError as error:
        if error.status in {400, 401, 403} or error.code == "model_not_found":
            raise
        result = {"ok": False, "error": {"code": error.code, "status": error.status, "message": error.message}}
    return result | {"seconds": (services.clock() - began) / 1_000_000}


def parse_model(body: bytes) -> tuple[dict[str, Any], ModelKeys]:
    """Return the fields of the model that the body has, and the keys of its upstreams. Raises BadBody, BadRequest."""
    members = msgspec.structs.asdict(parse_json(body, ModelDescription, "model"))
    changes = {name: value for name, value in members.items() if value is not msgspec.UNSET}
    key = changes.pop("key", None)
    if "command" in changes:
        changes["command"] = _words(changes["command"])
    described: list[EndpointDescription] = changes.get("endpoints", [])
    endpoint_keys = {(each.url, each.upstream_model): each.key for each in described if each.key}
    if "endpoints" in changes:
        changes["endpoints"] = tuple(
            EndpointConfig(url=each.url, upstream_model=each.upstream_model, max_parallel=each.max_parallel)
            for each in described
        )
    return changes, ModelKeys(key, endpoint_keys)


def _words(command: list[str] | str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command) if isinstance(command, str) else command)
    except ValueError as error:
        raise BadRequest(f"`command` is not a valid command line: {error}.") from None


def _model_json(status: ModelStatus) -> dict[str, Any]:
    """Return a model for a response, with `has_key` in place of its keys."""
    members: dict[str, Any] = msgspec.to_builtins(status.model)
    has_key = members.pop("key_id") is not None
    members["endpoints"] = [each | {"has_key": each.pop("key_id") is not None} for each in members["endpoints"]]
    return members | {"has_key": has_key, "registered": status.is_registered, "state": status.state}


router = Router(
    "/api/models",
    route_handlers=[get_models, post_model, show_model, patch_model, delete_model, post_operation],
    tags=["models"],
)
