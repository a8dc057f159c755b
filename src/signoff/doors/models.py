"""The native door to models: `/api/models`, for admins."""

from __future__ import annotations

import shlex
from typing import Any

import msgspec
from litestar import Request, Response, Router, delete, get, patch, post
from litestar.params import FromPath, FromQuery

from signoff.core.policy import Review
from signoff.core.target import Kind, Model, Timeouts
from signoff.doors.http import TheCaller, TheDesk, TheKnobs, scope_of, takes_commands
from signoff.errors import BadRequest, SignoffError
from signoff.work.manage import Seen, add_model, change_model, health_of, look_at_model, look_at_models, remove_model
from signoff.work.trial import try_model


class Described(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a model is to be; `command` is a line or its words, `key` the upstream's, which is never shown again."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    kind: Kind | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType | None = msgspec.UNSET
    upstream_model: str | msgspec.UnsetType | None = msgspec.UNSET
    command: list[str] | str | msgspec.UnsetType = msgspec.UNSET
    serve: bool | msgspec.UnsetType = msgspec.UNSET
    idle_seconds: float | msgspec.UnsetType = msgspec.UNSET
    start_seconds: float | msgspec.UnsetType = msgspec.UNSET
    timeouts: Timeouts | msgspec.UnsetType = msgspec.UNSET
    attempts: int | msgspec.UnsetType | None = msgspec.UNSET
    review: Review | msgspec.UnsetType | None = msgspec.UNSET
    default: bool | msgspec.UnsetType = msgspec.UNSET
    key: str | msgspec.UnsetType = msgspec.UNSET


@get("/", summary="List models")
async def listed(desk: TheDesk, caller: TheCaller) -> dict[str, Any]:
    """Every model, registered ones first."""
    return {"data": [_as_seen(seen) for seen in await look_at_models(desk, caller)]}


@post("/", status_code=201, summary="Register a model")
async def create(
    request: Request[Any, Any, Any], desk: TheDesk, knobs: TheKnobs, caller: TheCaller
) -> Response[dict[str, Any]]:
    """The model, which every process knows within a second."""
    changes, secret = _decoded(await request.body())
    if not {"name", "kind"} <= changes.keys():
        raise BadRequest("A model has a name and a kind.")
    model = Model(**changes)
    commands = takes_commands(knobs, scope_of(request))
    await add_model(desk, caller, model, secret, commands=commands, is_new=True)
    seen = await look_at_model(desk, caller, model.name)
    return Response(_as_seen(seen), headers={"location": f"/api/models/{model.name}"})


@get("/{name:path}", summary="Look at a model, or at its health")
async def one(
    desk: TheDesk, caller: TheCaller, name: FromPath[str], health: FromQuery[bool | None] = None
) -> dict[str, Any]:
    """The model; with `health`, whether it can be reached now."""
    seen = await look_at_model(desk, caller, name.removeprefix("/"))
    return _as_seen(seen) | ({"health": await health_of(desk, seen.model)} if health else {})


@patch("/{name:path}", summary="Change a model")
async def changed(
    request: Request[Any, Any, Any], desk: TheDesk, knobs: TheKnobs, caller: TheCaller, name: FromPath[str]
) -> dict[str, Any]:
    """The model, with what was given; all else stays."""
    changes, secret = _decoded(await request.body())
    commands = takes_commands(knobs, scope_of(request))
    await change_model(desk, caller, name.removeprefix("/"), changes, secret, commands=commands)
    return _as_seen(await look_at_model(desk, caller, name.removeprefix("/")))


@delete("/{name:path}", status_code=204, summary="Forget a model")
async def removed(desk: TheDesk, caller: TheCaller, name: FromPath[str]) -> None:
    """Nobody is sent there any more; jobs of it that wait will fail."""
    await remove_model(desk, caller, name.removeprefix("/"))


@post("/{name:path}", status_code=200, summary="Try a model with one request")
async def tried(
    request: Request[Any, Any, Any], desk: TheDesk, caller: TheCaller, name: FromPath[str]
) -> dict[str, Any]:
    """What it answered and how long it took, or the error that a caller would get."""
    body = await request.body() or b'"Hello."'
    began = desk.clock()
    try:
        answer = await try_model(desk, caller, name.removeprefix("/"), body)
        told = {"ok": True, "answer": msgspec.Raw(answer)}
    except SignoffError as error:
        if error.status in {400, 401, 403} or error.code == "model_not_found":
            raise
        told = {"ok": False, "error": {"code": error.code, "status": error.status, "message": error.message}}
    return told | {"seconds": (desk.clock() - began) / 1_000_000}


def _decoded(body: bytes) -> tuple[dict[str, Any], str | None]:
    """What is given of a model, and its key."""
    try:
        given = msgspec.structs.asdict(msgspec.json.decode(body, type=Described))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"This is not a model: {error}") from None
    changes = {name: value for name, value in given.items() if value is not msgspec.UNSET}
    secret = changes.pop("key", None)
    if "command" in changes:
        changes["command"] = _words(changes["command"])
    return changes, secret


def _words(command: list[str] | str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command) if isinstance(command, str) else command)
    except ValueError as error:
        raise BadRequest(f"command cannot be read: {error}.") from None


def _as_seen(seen: Seen) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(seen.model)
    has_key = told.pop("key_id") is not None
    return told | {"has_key": has_key, "registered": seen.is_registered, "state": seen.state}


router = Router("/api/models", route_handlers=[listed, create, one, changed, removed, tried], tags=["models"])
