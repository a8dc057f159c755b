"""The doors to prompts, pipelines and functions: `/api/prompts`, `/api/pipelines`, `/api/functions`."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import msgspec
from litestar import Request, Response, Router, delete, get, patch, post, put
from litestar.params import FromPath, FromQuery, QueryParameter

from signoff.core.filters import LibraryFilter
from signoff.core.pipelines.check import parameter_names
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem, LibraryItemKind
from signoff.core.pipelines.function import Function
from signoff.core.wire import format_time
from signoff.doors.http import INTS, InjectedCaller, InjectedServices, decoded
from signoff.errors import BadRequest
from signoff.work.pipelines import library
from signoff.work.pipelines.functions import list_functions, sync_functions

MAX_PAGE = 1000
T = TypeVar("T")
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]


class NewVersion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is saved. `label` moves to the new version; null moves none."""

    body: str
    name: str | None = None
    model: str | msgspec.UnsetType | None = msgspec.UNSET
    message: str = ""
    label: str | None = PRODUCTION
    shared: bool | None = None


class ItemChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What changes without a new version."""

    shared: bool


class LabelTarget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a label goes."""

    version: Annotated[int, msgspec.Meta(ge=1, lt=INTS)]


def routes_of(kind: LibraryItemKind) -> Router:
    """The routes of prompts, or of pipelines; in them, `name` is a name or an id."""
    return Router(
        f"/api/{kind}s",
        route_handlers=[*_reading(kind), *_history(kind), *_writing(kind), *_labels(kind)],
        tags=[f"{kind}s"],
    )


def _reading(kind: LibraryItemKind) -> list[Any]:
    @get("/", summary=f"List {kind}s")
    async def listed(
        services: InjectedServices, caller: InjectedCaller, after: FromQuery[str | None] = None, limit: Limit = 50
    ) -> dict[str, Any]:
        """A page of one's own and what is shared, by name; `next` is the cursor of the following one."""
        which = LibraryFilter(kind=kind, after=after or "", limit=limit)
        return _page(await library.list_items(services, caller, which), limit)

    @get("/{name:str}", summary=f"Look at a {kind}")
    async def one(
        services: InjectedServices, caller: InjectedCaller, name: FromPath[str], version: FromQuery[str | None] = None
    ) -> dict[str, Any]:
        """The version of that number or label; without one, the production version."""
        return as_seen(await library.get_item(services, caller, kind, name, _at(version)))

    @get("/{name:str}/users", summary=f"Which pipelines call a {kind}")
    async def users(
        services: InjectedServices,
        caller: InjectedCaller,
        name: FromPath[str],
        after: FromQuery[str | None] = None,
        limit: Limit = 50,
    ) -> dict[str, Any]:
        """A page of those that the caller may see, by name."""
        return _page(await library.list_dependents(services, caller, kind, name, after=after or "", limit=limit), limit)

    return [listed, one, users]


def _history(kind: LibraryItemKind) -> list[Any]:
    @get("/{name:str}/versions", summary=f"List the versions of a {kind}")
    async def versions(
        services: InjectedServices,
        caller: InjectedCaller,
        name: FromPath[str],
        before: Annotated[int | None, QueryParameter(ge=0, lt=INTS)] = None,
        limit: Limit = 50,
    ) -> dict[str, Any]:
        """A page, the newest first; `next` is `before` of the following one."""
        found = await library.list_versions(services, caller, kind, name, before=before, limit=limit)
        next_one = found[-1].version if len(found) == limit else None
        return {"data": [as_seen(each) for each in found], "next": next_one}

    @get("/{name:str}/difference", summary=f"What has changed between two versions of a {kind}")
    async def difference(
        services: InjectedServices,
        caller: InjectedCaller,
        name: FromPath[str],
        old: Annotated[str, QueryParameter(name="from")],
        new: Annotated[str, QueryParameter(name="to")] = PRODUCTION,
    ) -> dict[str, str]:
        """As `diff -u` shows it; empty where nothing has."""
        return {"difference": await library.diff_versions(services, caller, kind, name, _at(old), _at(new))}

    return [versions, difference]


def _writing(kind: LibraryItemKind) -> list[Any]:
    @post("/", status_code=201, summary=f"Make a {kind}")
    async def create(
        request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller
    ) -> Response[dict[str, Any]]:
        """Its first version."""
        given = _decoded(await request.body(), NewVersion)
        if given.name is None:
            raise BadRequest(f"A {kind} has a name.")
        made = await library.create_item(services, caller, kind, _draft(kind, given, given.name, None))
        return Response(as_seen(made), headers={"location": f"/api/{kind}s/{quote(made.name, safe='')}"})

    @put("/{name:str}", summary=f"Save a {kind} anew")
    async def save(
        request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
    ) -> dict[str, Any]:
        """A new version; the old ones stay."""
        given = _decoded(await request.body(), NewVersion)
        old = await library.get_item(services, caller, kind, name)
        return as_seen(
            await library.save_version(services, caller, kind, name, _draft(kind, given, given.name or old.name, old))
        )

    @patch("/{name:str}", summary=f"Share a {kind}, or no longer")
    async def share(
        request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
    ) -> dict[str, Any]:
        """All its versions."""
        shared = _decoded(await request.body(), ItemChanges).shared
        return as_seen(await library.set_shared(services, caller, kind, name, shared=shared))

    @delete("/{name:str}", status_code=204, summary=f"Forget a {kind}")
    async def remove(
        services: InjectedServices, caller: InjectedCaller, name: FromPath[str], force: FromQuery[bool | None] = None
    ) -> None:
        """All its versions; not while a pipeline calls it, unless by `force`."""
        await library.remove_item(services, caller, kind, name, force=bool(force))

    return [create, save, share, remove]


def _labels(kind: LibraryItemKind) -> list[Any]:
    @put("/{name:str}/labels/{label:str}", summary=f"Move a label of a {kind}")
    async def move(
        request: Request[Any, Any, Any],
        services: InjectedServices,
        caller: InjectedCaller,
        name: FromPath[str],
        label: FromPath[str],
    ) -> dict[str, Any]:
        """The version that has it now."""
        version = _decoded(await request.body(), LabelTarget).version
        return as_seen(await library.set_label(services, caller, kind, name, label, version))

    @delete("/{name:str}/labels/{label:str}", status_code=204, summary=f"Take a label of a {kind} away")
    async def take_away(
        services: InjectedServices, caller: InjectedCaller, name: FromPath[str], label: FromPath[str]
    ) -> None:
        """The production label stays."""
        await library.set_label(services, caller, kind, name, label, None)

    return [move, take_away]


@get("/", summary="List functions")
async def functions(
    services: InjectedServices, caller: InjectedCaller, after: FromQuery[str | None] = None, limit: Limit = 200
) -> dict[str, Any]:
    """A page of those that pipelines can call, by name, with what they take and their docstrings."""
    found = await list_functions(services, after=after or "", limit=limit)
    return {"data": [_shown(each) for each in found], "next": found[-1].name if len(found) == limit else None}


@post("/sync", status_code=200, summary="Register the functions that the files hold")
async def synced(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """The names that were added and dropped; what is wrong in a file; names that something else has."""
    report = await sync_functions(services, caller)
    return {
        "success": True,
        "created": report.synced.created,
        "deleted": report.synced.deleted,
        "taken": report.synced.conflicts,
        "broken": report.broken,
    }


def as_seen(composed: LibraryItem) -> dict[str, Any]:
    """A version as the wire has it."""
    hidden = {"tree", "created_at"}
    told = {name: value for name, value in msgspec.structs.asdict(composed).items() if name not in hidden}
    return told | {"args": parameter_names(composed), "created_at": format_time(composed.created_at)}


def _shown(function: Function) -> dict[str, Any]:
    params = [f"{param.name}={param.default or '…'}" if param.has_default else param.name for param in function.params]
    told = msgspec.to_builtins(function)
    del told["digest"]
    return told | {"signature": f"{function.name}({', '.join(params)})"}


def _page(found: Any, limit: int) -> dict[str, Any]:
    return {"data": [as_seen(each) for each in found], "next": found[-1].name if len(found) == limit else None}


def _draft(kind: LibraryItemKind, given: NewVersion, name: str, old: LibraryItem | None) -> library.Draft:
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
