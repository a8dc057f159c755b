"""The doors to prompts, pipelines and functions: `/api/prompts`, `/api/pipelines`, `/api/functions`."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import msgspec
from litestar import Request, Response, Router, delete, get, patch, post, put
from litestar.params import FromPath, FromQuery, QueryParameter

from signoff.core.pipelines.check import wants
from signoff.core.pipelines.composed import PRODUCTION, Composed, Composition
from signoff.core.pipelines.function import Function
from signoff.core.wire import when
from signoff.doors.http import INTS, TheCaller, TheDesk, decoded
from signoff.errors import BadRequest
from signoff.store import ComposedFilter
from signoff.work.pipelines import library
from signoff.work.pipelines.functions import look_at_functions, sync

MAX_PAGE = 1000
T = TypeVar("T")
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]


class Given(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is saved. `label` moves to the new version; null moves none."""

    body: str
    name: str | None = None
    model: str | msgspec.UnsetType | None = msgspec.UNSET
    message: str = ""
    label: str | None = PRODUCTION
    shared: bool | None = None


class Changed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What changes without a new version."""

    shared: bool


class Moved(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a label goes."""

    version: Annotated[int, msgspec.Meta(ge=1, lt=INTS)]


def routes_of(kind: Composition) -> Router:
    """The routes of prompts, or of pipelines; in them, `name` is a name or an id."""
    return Router(
        f"/api/{kind}s",
        route_handlers=[*_reading(kind), *_history(kind), *_writing(kind), *_labels(kind)],
        tags=[f"{kind}s"],
    )


def _reading(kind: Composition) -> list[Any]:
    @get("/", summary=f"List {kind}s")
    async def listed(
        desk: TheDesk, caller: TheCaller, after: FromQuery[str | None] = None, limit: Limit = 50
    ) -> dict[str, Any]:
        """A page of one's own and what is shared, by name; `next` is the cursor of the following one."""
        which = ComposedFilter(kind=kind, after=after or "", limit=limit)
        return _page(await library.look_at_each(desk, caller, which), limit)

    @get("/{name:str}", summary=f"Look at a {kind}")
    async def one(
        desk: TheDesk, caller: TheCaller, name: FromPath[str], version: FromQuery[str | None] = None
    ) -> dict[str, Any]:
        """The version of that number or label; without one, the production version."""
        return as_seen(await library.look_at(desk, caller, kind, name, _at(version)))

    @get("/{name:str}/users", summary=f"Which pipelines call a {kind}")
    async def users(
        desk: TheDesk,
        caller: TheCaller,
        name: FromPath[str],
        after: FromQuery[str | None] = None,
        limit: Limit = 50,
    ) -> dict[str, Any]:
        """A page of those that the caller may see, by name."""
        return _page(await library.users_of(desk, caller, kind, name, after=after or "", limit=limit), limit)

    return [listed, one, users]


def _history(kind: Composition) -> list[Any]:
    @get("/{name:str}/versions", summary=f"List the versions of a {kind}")
    async def versions(
        desk: TheDesk,
        caller: TheCaller,
        name: FromPath[str],
        before: Annotated[int | None, QueryParameter(ge=0, lt=INTS)] = None,
        limit: Limit = 50,
    ) -> dict[str, Any]:
        """A page, the newest first; `next` is `before` of the following one."""
        found = await library.versions_of(desk, caller, kind, name, before=before, limit=limit)
        next_one = found[-1].version if len(found) == limit else None
        return {"data": [as_seen(each) for each in found], "next": next_one}

    @get("/{name:str}/difference", summary=f"What has changed between two versions of a {kind}")
    async def difference(
        desk: TheDesk,
        caller: TheCaller,
        name: FromPath[str],
        old: Annotated[str, QueryParameter(name="from")],
        new: Annotated[str, QueryParameter(name="to")] = PRODUCTION,
    ) -> dict[str, str]:
        """As `diff -u` shows it; empty where nothing has."""
        return {"difference": await library.difference(desk, caller, kind, name, _at(old), _at(new))}

    return [versions, difference]


def _writing(kind: Composition) -> list[Any]:
    @post("/", status_code=201, summary=f"Make a {kind}")
    async def create(request: Request[Any, Any, Any], desk: TheDesk, caller: TheCaller) -> Response[dict[str, Any]]:
        """Its first version."""
        given = _decoded(await request.body(), Given)
        if given.name is None:
            raise BadRequest(f"A {kind} has a name.")
        made = await library.create(desk, caller, kind, _draft(kind, given, given.name, None))
        return Response(as_seen(made), headers={"location": f"/api/{kind}s/{quote(made.name, safe='')}"})

    @put("/{name:str}", summary=f"Save a {kind} anew")
    async def save(
        request: Request[Any, Any, Any], desk: TheDesk, caller: TheCaller, name: FromPath[str]
    ) -> dict[str, Any]:
        """A new version; the old ones stay."""
        given = _decoded(await request.body(), Given)
        old = await library.look_at(desk, caller, kind, name)
        return as_seen(await library.save(desk, caller, kind, name, _draft(kind, given, given.name or old.name, old)))

    @patch("/{name:str}", summary=f"Share a {kind}, or no longer")
    async def share(
        request: Request[Any, Any, Any], desk: TheDesk, caller: TheCaller, name: FromPath[str]
    ) -> dict[str, Any]:
        """All its versions."""
        shared = _decoded(await request.body(), Changed).shared
        return as_seen(await library.share(desk, caller, kind, name, shared=shared))

    @delete("/{name:str}", status_code=204, summary=f"Forget a {kind}")
    async def remove(
        desk: TheDesk, caller: TheCaller, name: FromPath[str], force: FromQuery[bool | None] = None
    ) -> None:
        """All its versions; not while a pipeline calls it, unless by `force`."""
        await library.remove(desk, caller, kind, name, force=bool(force))

    return [create, save, share, remove]


def _labels(kind: Composition) -> list[Any]:
    @put("/{name:str}/labels/{label:str}", summary=f"Move a label of a {kind}")
    async def move(
        request: Request[Any, Any, Any], desk: TheDesk, caller: TheCaller, name: FromPath[str], label: FromPath[str]
    ) -> dict[str, Any]:
        """The version that has it now."""
        version = _decoded(await request.body(), Moved).version
        return as_seen(await library.label(desk, caller, kind, name, label, version))

    @delete("/{name:str}/labels/{label:str}", status_code=204, summary=f"Take a label of a {kind} away")
    async def take_away(desk: TheDesk, caller: TheCaller, name: FromPath[str], label: FromPath[str]) -> None:
        """The production label stays."""
        await library.label(desk, caller, kind, name, label, None)

    return [move, take_away]


@get("/", summary="List functions")
async def functions(
    desk: TheDesk, caller: TheCaller, after: FromQuery[str | None] = None, limit: Limit = 200
) -> dict[str, Any]:
    """A page of those that pipelines can call, by name, with what they take and their docstrings."""
    found = await look_at_functions(desk, after=after or "", limit=limit)
    return {"data": [_shown(each) for each in found], "next": found[-1].name if len(found) == limit else None}


@post("/sync", status_code=200, summary="Register the functions that the files hold")
async def synced(desk: TheDesk, caller: TheCaller) -> dict[str, Any]:
    """The names that were added and dropped; what is wrong in a file; names that something else has."""
    report = await sync(desk, caller)
    return {
        "success": True,
        "created": report.synced.created,
        "deleted": report.synced.deleted,
        "taken": report.synced.taken,
        "broken": report.broken,
    }


def as_seen(composed: Composed) -> dict[str, Any]:
    """A version as the wire has it."""
    hidden = {"tree", "created_at"}
    told = {name: value for name, value in msgspec.structs.asdict(composed).items() if name not in hidden}
    return told | {"args": wants(composed), "created_at": when(composed.created_at)}


def _shown(function: Function) -> dict[str, Any]:
    params = [f"{param.name}={param.default or '…'}" if param.has_default else param.name for param in function.params]
    told = msgspec.to_builtins(function)
    del told["digest"]
    return told | {"signature": f"{function.name}({', '.join(params)})"}


def _page(found: Any, limit: int) -> dict[str, Any]:
    return {"data": [as_seen(each) for each in found], "next": found[-1].name if len(found) == limit else None}


def _draft(kind: Composition, given: Given, name: str, old: Composed | None) -> library.Draft:
    model = getattr(old, "model", None) if given.model is msgspec.UNSET else given.model
    if kind == "pipeline" and model is not None:
        raise BadRequest("A pipeline has no model; its prompts have.")
    return library.Draft(
        name=name, body=given.body, model=model, message=given.message, label=given.label, shared=given.shared
    )


def _at(version: str | None) -> str | int:
    """A number, or a label."""
    if version is None:
        return PRODUCTION
    return int(version) if version.isascii() and version.isdigit() and len(version) < 10 else version


def _decoded(body: bytes, kind: type[T]) -> T:
    return decoded(body, kind, "This cannot be read")


router = Router(
    "/",
    route_handlers=[
        routes_of("prompt"),
        routes_of("pipeline"),
        Router("/api/functions", route_handlers=[functions, synced]),
    ],
)
