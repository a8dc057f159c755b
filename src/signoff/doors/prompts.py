"""The native API of prompts, pipelines and functions: `/api/prompts`, `/api/pipelines`, `/api/functions`."""

from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from litestar import Response, Router, delete, get, patch, post, put
from litestar.params import FromPath, FromQuery, QueryParameter

from signoff.core.filters import LibraryFilter, Page
from signoff.core.pipelines.check import parameter_names
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem, LibraryItemKind
from signoff.core.pipelines.function import Function
from signoff.core.wire import format_time
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import INTS, parse_json
from signoff.errors import BadRequest, MissingParameter
from signoff.work.pipelines import library
from signoff.work.pipelines.functions import list_functions, sync_functions

MAX_PAGE = 1000
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]


class NewVersion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body that saves a version of a prompt or a pipeline."""

    body: str
    """Text of the version."""
    name: str | None = None
    """Name; required for a first version, and fixed after it."""
    model: str | msgspec.UnsetType | None = msgspec.UNSET
    """Model of a prompt; None for the default model. Left out: the one of the production version."""
    message: str = ""
    """Description of the change."""
    label: str | None = PRODUCTION
    """Label that moves to the new version; None to move none."""
    shared: bool | None = None
    """True to let all users see and call it; None to keep the old value."""


class ItemChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body that changes a prompt or a pipeline without a new version."""

    shared: bool
    """True to let all users see and call it."""


class LabelTarget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body that moves a label."""

    version: Annotated[int, msgspec.Meta(ge=1, lt=INTS)]
    """Number of the version that gets the label."""


def make_router(kind: LibraryItemKind) -> Router:
    """Return the routes of prompts, or of pipelines; their path parameter `name` is a name or an id."""
    return Router(
        f"/api/{kind}s",
        route_handlers=[*_read_routes(kind), *_version_routes(kind), *_write_routes(kind), *_label_routes(kind)],
        tags=[f"{kind}s"],
    )


def _read_routes(kind: LibraryItemKind) -> list[Any]:
    @get("/", summary=f"List {kind}s")
    async def get_items(
        services: InjectedServices, caller: InjectedCaller, after: FromQuery[str | None] = None, limit: Limit = 50
    ) -> dict[str, Any]:
        """Return a page of the caller's own and all shared items (for an admin, of all items), by name.

        Pass `next` as `after` to get the next page.
        """
        library_filter = LibraryFilter(kind=kind, after=after or "", limit=limit)
        return _page(await library.list_items(services, caller, library_filter))

    @get("/{name:str}", summary=f"Get a {kind}")
    async def get_item(
        services: InjectedServices, caller: InjectedCaller, name: FromPath[str], version: FromQuery[str | None] = None
    ) -> dict[str, Any]:
        """Return the version with the number or label `version`; by default, the production version."""
        return _item_json(await library.get_item(services, caller, kind, name, _at(version)))

    @get("/{name:str}/users", summary=f"List the pipelines that call a {kind}")
    async def get_dependents(
        services: InjectedServices,
        caller: InjectedCaller,
        name: FromPath[str],
        after: FromQuery[str | None] = None,
        limit: Limit = 50,
    ) -> dict[str, Any]:
        """Return a page of the pipelines that call it and that the caller may see, by name."""
        return _page(await library.list_dependents(services, caller, kind, name, after=after or "", limit=limit))

    return [get_items, get_item, get_dependents]


def _version_routes(kind: LibraryItemKind) -> list[Any]:
    @get("/{name:str}/versions", summary=f"List the versions of a {kind}")
    async def get_versions(
        services: InjectedServices,
        caller: InjectedCaller,
        name: FromPath[str],
        before: Annotated[int | None, QueryParameter(ge=0, lt=INTS)] = None,
        limit: Limit = 50,
    ) -> dict[str, Any]:
        """Return a page of the versions, newest first. Pass `next` as `before` to get the next page."""
        versions = await library.list_versions(services, caller, kind, name, before=before, limit=limit)
        cursor = versions[-1].version if versions and versions.may_continue else None
        return {"data": [_item_json(version) for version in versions], "next": cursor}

    @get("/{name:str}/difference", summary=f"Compare two versions of a {kind}")
    async def get_difference(
        services: InjectedServices,
        caller: InjectedCaller,
        name: FromPath[str],
        old: Annotated[str, QueryParameter(name="from")],
        new: Annotated[str, QueryParameter(name="to")] = PRODUCTION,
    ) -> dict[str, str]:
        """Return the output of `diff -u`; empty if the versions are equal."""
        return {"difference": await library.diff_versions(services, caller, kind, name, _at(old), _at(new))}

    return [get_versions, get_difference]


def _write_routes(kind: LibraryItemKind) -> list[Any]:
    @post("/", status_code=201, summary=f"Create a {kind}")
    async def post_item(
        request: AnyRequest, services: InjectedServices, caller: InjectedCaller
    ) -> Response[dict[str, Any]]:
        """Save the first version, and return it."""
        version = parse_json(await request.body(), NewVersion, "version")
        if version.name is None:
            raise MissingParameter("name")
        item = await library.create_item(services, caller, kind, _draft(kind, version, version.name, None))
        return Response(_item_json(item), headers={"location": f"/api/{kind}s/{quote(item.name, safe='')}"})

    @put("/{name:str}", summary=f"Save a new version of a {kind}")
    async def put_item(
        request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
    ) -> dict[str, Any]:
        """Save a new version, and return it; the old ones stay."""
        version = parse_json(await request.body(), NewVersion, "version")
        old = await library.get_item(services, caller, kind, name)
        draft = _draft(kind, version, version.name or old.name, old)
        return _item_json(await library.save_version(services, caller, kind, name, draft))

    @patch("/{name:str}", summary=f"Share a {kind}, or stop sharing it")
    async def patch_item(
        request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
    ) -> dict[str, Any]:
        """Share all versions with all users, or stop sharing them."""
        shared = parse_json(await request.body(), ItemChanges, "change").shared
        return _item_json(await library.set_shared(services, caller, kind, name, shared=shared))

    @delete("/{name:str}", status_code=204, summary=f"Delete a {kind}")
    async def delete_item(
        services: InjectedServices, caller: InjectedCaller, name: FromPath[str], force: FromQuery[bool | None] = None
    ) -> None:
        """Delete all versions. Without `force=true`, fail if a pipeline calls it."""
        await library.remove_item(services, caller, kind, name, force=bool(force))

    return [post_item, put_item, patch_item, delete_item]


def _label_routes(kind: LibraryItemKind) -> list[Any]:
    @put("/{name:str}/labels/{label:str}", summary=f"Move a label of a {kind}")
    async def put_label(
        request: AnyRequest,
        services: InjectedServices,
        caller: InjectedCaller,
        name: FromPath[str],
        label: FromPath[str],
    ) -> dict[str, Any]:
        """Move the label, and return the version that has it now."""
        version = parse_json(await request.body(), LabelTarget, "label").version
        return _item_json(await library.set_label(services, caller, kind, name, label, version))

    @delete("/{name:str}/labels/{label:str}", status_code=204, summary=f"Remove a label of a {kind}")
    async def delete_label(
        services: InjectedServices, caller: InjectedCaller, name: FromPath[str], label: FromPath[str]
    ) -> None:
        """Remove the label; the label `production` cannot be removed."""
        await library.set_label(services, caller, kind, name, label, None)

    return [put_label, delete_label]


@get("/", summary="List functions")
async def get_functions(
    services: InjectedServices, caller: InjectedCaller, after: FromQuery[str | None] = None, limit: Limit = 200
) -> dict[str, Any]:
    """Return a page of the functions that pipelines can call, by name, with their signatures and docstrings."""
    functions = await list_functions(services, after=after or "", limit=limit)
    cursor = functions[-1].name if len(functions) == limit else None
    return {"data": [_function_json(function) for function in functions], "next": cursor}


@post("/sync", status_code=200, summary="Register the functions in the files")
async def post_sync(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Register the functions in the files of this process, for all processes.

    The response has the names that were registered (`created`) and removed (`deleted`), those that were left out
    because a prompt or a pipeline has the same name (`taken`), and the files that cannot be read (`broken`).
    """
    report = await sync_functions(services, caller)
    return {
        "success": True,
        "created": report.synced.created,
        "deleted": report.synced.deleted,
        "taken": report.synced.conflicts,
        "broken": report.broken,
    }


def _item_json(item: LibraryItem) -> dict[str, Any]:
    """Return a version for a response."""
    replaced = {"tree", "created_at"}  # `tree` gives `args`, and `created_at` is formatted
    members = {name: value for name, value in msgspec.structs.asdict(item).items() if name not in replaced}
    return members | {"args": parameter_names(item), "created_at": format_time(item.created_at)}


def _function_json(function: Function) -> dict[str, Any]:
    params = [f"{param.name}={param.default or '…'}" if param.has_default else param.name for param in function.params]
    members = msgspec.to_builtins(function)
    del members["digest"]
    return members | {"signature": f"{function.name}({', '.join(params)})"}


def _page(items: Page[LibraryItem]) -> dict[str, Any]:
    cursor = items[-1].name if items and items.may_continue else None
    return {"data": [_item_json(item) for item in items], "next": cursor}


def _draft(kind: LibraryItemKind, version: NewVersion, name: str, old: LibraryItem | None) -> library.LibraryDraft:
    model = getattr(old, "model", None) if version.model is msgspec.UNSET else version.model
    if kind == "pipeline" and model is not None:
        raise BadRequest("A pipeline must not have a `model`; set the model of the prompts that it calls.")
    return library.LibraryDraft(
        name=name, body=version.body, model=model, message=version.message, label=version.label, shared=version.shared
    )


def _at(version: str | None) -> str | int:
    """Return the number or the label of a version; by default, the production label."""
    if version is None:
        return PRODUCTION
    return int(version) if version.isascii() and version.isdigit() and len(version) < 10 else version


router = Router(
    "/",
    route_handlers=[
        make_router("prompt"),
        make_router("pipeline"),
        Router("/api/functions", route_handlers=[get_functions, post_sync], tags=["functions"]),
    ],
)
