"""The pages of prompts and pipelines: versions with their differences, a form to save one, and a form to run one."""

from typing import Any
from urllib.parse import quote

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.api_paths import PREDICT
from signoff.core.ask import Ask
from signoff.core.filters import LibraryFilter
from signoff.core.job import Job
from signoff.core.pipelines.check import parameter_names
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem, LibraryItemKind, Pipeline, Prompt
from signoff.dashboard.difference import unified_lines
from signoff.dashboard.edit_conflict import EditConflict, edit_conflict, expected_version
from signoff.dashboard.library_versions import DAYS, VersionUse, pipeline_use, prompt_use
from signoff.dashboard.shell import JOBS, PIPELINES, PROMPTS, page, redirect, with_status
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import INTS, parse_digits, parse_form
from signoff.errors import BadPipeline, BadRequest, NotFound, SignoffError, VersionConflict
from signoff.work.admin.registry import all_models
from signoff.work.pipelines import library
from signoff.work.services import Services
from signoff.work.submit import submit

MAX_LISTED = 50
MAX_VERSIONS = 20
NAVIGATION = {"prompt": PROMPTS, "pipeline": PIPELINES}


class VersionForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the form that saves a version."""

    body: str = ""
    """Text of the version."""
    name: str = ""
    """Name, in the form of a first version."""
    expected: str = ""
    """Number of the newest version when the form was shown."""
    model: str = ""
    """Model of a prompt; empty for the default model."""
    message: str = ""
    """Description of the change."""
    production: str = ""
    """Not empty if calls without a version shall use this one."""


def make_router(kind: LibraryItemKind) -> Router:
    """Return the pages of prompts, or of pipelines."""
    return Router(
        f"/dashboard/{kind}s", route_handlers=[_list_view(kind), _item_view(kind), *_forms(kind), *_actions(kind)]
    )


def _list_view(kind: LibraryItemKind) -> Any:
    @get("/", include_in_schema=False, media_type=MediaType.HTML)
    async def show_items(
        request: AnyRequest, services: InjectedServices, caller: InjectedCaller, after: FromQuery[str] = ""
    ) -> Template:
        """Show a page of the caller's items and the shared ones, by name, and the form of a new one."""
        return await _list_page(request, services, caller, kind, VersionForm(), after=after)

    return show_items


async def _list_page(  # noqa: PLR0913 -- the request, its caller, and what the page shows
    request: AnyRequest,
    services: Services,
    caller: Caller,
    kind: LibraryItemKind,
    form: VersionForm,
    *,
    after: str = "",
    error: SignoffError | None = None,
) -> Template:
    items = await library.list_items(services, caller, LibraryFilter(kind=kind, after=after, limit=MAX_LISTED))
    shown = page(
        request,
        services,
        caller,
        "library.html",
        NAVIGATION[kind].name,
        kind=kind,
        items=[_row(item) for item in items],
        next_name=items[-1].name if items and items.may_continue else None,
        models=[model.name for model in await all_models(services)],
        form=form,
        error=error and error.message,
    )
    return with_status(shown, error)


def _item_view(kind: LibraryItemKind) -> Any:
    @get("/{name:str}", include_in_schema=False, media_type=MediaType.HTML)
    async def show_item(
        request: AnyRequest,
        services: InjectedServices,
        caller: InjectedCaller,
        name: FromPath[str],
        version: FromQuery[str] = "",
        against: FromQuery[str] = "",
    ) -> Template:
        """Show a version (by default that in production), its difference to another one, and all versions."""
        number = parse_digits(version) or version or PRODUCTION
        return await _item_page(request, services, caller, (kind, name), number, against=against)

    return show_item


async def _item_page(  # noqa: PLR0913 -- the request, its caller, and what the page shows
    request: AnyRequest,
    services: Services,
    caller: Caller,
    kind_and_name: tuple[LibraryItemKind, str],
    version: int | str,
    *,
    against: str = "",
    form: VersionForm | None = None,
    error: SignoffError | None = None,
) -> Template:
    kind, name = kind_and_name
    item = await library.get_item(services, caller, kind, name, version)
    other, difference = parse_digits(against) or item.version - 1, ""
    if 0 < other < INTS and other != item.version:
        difference = await library.diff_versions(services, caller, kind, name, other, item.version)
    uses, examined = await _uses(services, caller, item)
    versions = await library.list_versions(services, caller, kind, name, before=None, limit=MAX_VERSIONS)
    conflict = await _conflict(services, caller, versions[0], form, error)
    error = error if conflict is None else conflict.error
    shown = page(
        request,
        services,
        caller,
        "library_item.html",
        NAVIGATION[kind].name,
        kind=kind,
        item=item,
        form=form or VersionForm(body=item.body, model=_chosen_model(item), production="yes"),
        error=error and error.message,
        model=_model_of(item),
        difference=unified_lines(difference),
        other=other,
        versions=versions,
        expected=str(versions[0].version) if form is None or conflict else form.expected,
        conflict=conflict,
        uses=uses,
        examined=examined,
        days=DAYS,
        arguments=parameter_names(item),
        tree=item.tree if isinstance(item, Pipeline) else None,
        fault=None,
        at=None,
        dependents=await library.list_dependents(services, caller, kind, name, limit=MAX_LISTED),
        models=[model.name for model in await all_models(services)],
        may_change=caller.role == "admin" or item.user_id == caller.user_id,
    )
    return with_status(shown, error)


def _forms(kind: LibraryItemKind) -> list[Any]:
    @post("/", include_in_schema=False, status_code=303, media_type=MediaType.HTML)
    async def post_item(
        request: AnyRequest, services: InjectedServices, caller: InjectedCaller
    ) -> Template | Response[str]:
        """Save a first version, and show it; or show the form again with what is wrong."""
        form = await _form(request)
        try:
            item = await library.create_item(services, caller, kind, _draft(kind, form, form.name.strip()))
        except SignoffError as error:
            return await _list_page(request, services, caller, kind, form, error=error)
        return _to_item(kind, item.name)

    @post("/{name:str}", include_in_schema=False, status_code=303, media_type=MediaType.HTML)
    async def post_version(
        request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
    ) -> Template | Response[str]:
        """Save a new version, and show it, or the form again with what is wrong; the old ones stay."""
        form = await _form(request)
        try:
            draft = msgspec.structs.replace(_draft(kind, form, name), expected_version=expected_version(form.expected))
            saved = await library.save_version(services, caller, kind, name, draft)
        except SignoffError as error:
            if error.status != 400 and not isinstance(error, VersionConflict):
                raise
            return await _item_page(request, services, caller, (kind, name), PRODUCTION, form=form, error=error)
        return _to_item(kind, name, saved.version)

    return [post_item, post_version]


def _actions(kind: LibraryItemKind) -> list[Any]:
    @post("/{name:str}/production", include_in_schema=False, status_code=303)
    async def post_production(
        request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
    ) -> Response[str]:
        """Let calls without a version use this one, and show it."""
        check_same_site(scope_of(request))
        version = parse_digits(parse_form(await request.body(), dict[str, str], "version").get("version"))
        if version is None or version >= INTS:
            raise BadRequest("`version` must be the number of a version; reload the page and try again.")
        await library.set_label(services, caller, kind, name, PRODUCTION, version)
        return _to_item(kind, name)

    @post("/{name:str}/share", include_in_schema=False, status_code=303)
    async def post_share(
        request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
    ) -> Response[str]:
        """Share the item with every user, or with none, and show it."""
        check_same_site(scope_of(request))
        form = parse_form(await request.body(), dict[str, str], "item")
        await library.set_shared(services, caller, kind, name, shared=bool(form.get("shared")))
        return _to_item(kind, name)

    @post("/{name:str}/delete", include_in_schema=False, status_code=303)
    async def post_removal(
        request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
    ) -> Response[str]:
        """Remove all versions of the item, which no pipeline may call, and show the others."""
        check_same_site(scope_of(request))
        await library.remove_item(services, caller, kind, name)
        return redirect(NAVIGATION[kind].path)

    @post("/{name:str}/run", include_in_schema=False, status_code=303)
    async def post_run(
        request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
    ) -> Response[str]:
        """Run the version in production with the arguments of the form, and show its job, whose log follows it."""
        check_same_site(scope_of(request))
        job = await _run(services, caller, await library.get_item(services, caller, kind, name), await request.body())
        return redirect(f"{JOBS.path}/{job.id}")

    return [post_production, post_share, post_removal, post_run]


async def _run(services: Services, caller: Caller, item: LibraryItem, form: bytes) -> Job:
    """Submit a run of the item with the arguments of the form, and return its job."""
    fields = parse_form(form, dict[str, str], "run")
    arguments = {argument: fields.get(f"argument.{argument}", "") for argument in parameter_names(item)}
    ask = Ask(
        door="pages",
        caller=caller,
        path=PREDICT,
        body=msgspec.json.encode(arguments),
        target=item.name,
        pipeline=item if isinstance(item, Pipeline) else None,
    )
    return await submit(services, ask)


async def _uses(services: Services, caller: Caller, item: LibraryItem) -> tuple[dict[Any, VersionUse], int | None]:
    """Return the use of each version, and the number of jobs that were looked at, if not all."""
    if isinstance(item, Prompt):
        return await prompt_use(services, caller, item.name), None
    return await pipeline_use(services, caller, item)


@post("/dashboard/drafts/{kind:str}", include_in_schema=False, status_code=200, media_type=MediaType.HTML)
async def post_draft(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, kind: FromPath[str]
) -> Template:
    """Return the arguments, calls or the fault of the text in a form while somebody writes it; nothing is saved."""
    if kind not in NAVIGATION:
        raise NotFound(f"There are no drafts of {kind!r}; the kinds are {' and '.join(NAVIGATION)}.")
    item_kind: LibraryItemKind = "pipeline" if kind == "pipeline" else "prompt"
    form = await _form(request)
    item, fault = None, None
    try:
        item = await library.check_draft(services, caller, item_kind, _draft(item_kind, form, form.name.strip()))
    except SignoffError as error:
        fault = error
    return page(
        request,
        services,
        caller,
        "draft.html",
        NAVIGATION[item_kind].name,
        kind=item_kind,
        arguments=[] if item is None else parameter_names(item),
        tree=item.tree if isinstance(item, Pipeline) else None,
        fault=fault,
        at=fault.at if isinstance(fault, BadPipeline) else None,
    )


async def _form(request: AnyRequest) -> VersionForm:
    check_same_site(scope_of(request))
    return parse_form(await request.body(), VersionForm, "version")


def _draft(kind: LibraryItemKind, form: VersionForm, name: str) -> library.LibraryDraft:
    return library.LibraryDraft(
        name=name,
        body=form.body.replace("\r\n", "\n"),
        model=(form.model or None) if kind == "prompt" else None,
        message=form.message,
        label=PRODUCTION if form.production else None,
    )


async def _conflict(
    services: Services, caller: Caller, newest: LibraryItem, form: VersionForm | None, error: SignoffError | None
) -> EditConflict | None:
    """Return what somebody else has saved since the form was shown; None unless `error` says that there is such."""
    if form is None or not isinstance(error, VersionConflict):
        return None
    kind: LibraryItemKind = "pipeline" if isinstance(newest, Pipeline) else "prompt"
    present = _compared_text(kind, newest.body, _chosen_model(newest))
    texts = present, _compared_text(kind, form.body, form.model)
    return await edit_conflict(services, caller, f"{kind}:{newest.name}", newest.version, texts)


def _compared_text(kind: LibraryItemKind, body: str, model: str) -> str:
    """Return the text of a version with its model, if it has one, as both can be changed in the form."""
    text = body.replace("\r\n", "\n")
    return text if kind == "pipeline" else f"Model: {model or 'the default model'}\n\n{text}"


def _to_item(kind: LibraryItemKind, name: str, version: int | None = None) -> Response[str]:
    query = "" if version is None else f"?version={version}"
    return redirect(f"{NAVIGATION[kind].path}/{quote(name, safe='')}{query}")


def _row(item: LibraryItem) -> dict[str, Any]:
    return {"item": item, "model": _model_of(item), "arguments": parameter_names(item), "text": item.body[:400]}


def _chosen_model(item: LibraryItem) -> str:
    """Return the model in the form of a prompt; empty for the default model."""
    return (item.model or "") if isinstance(item, Prompt) else ""


def _model_of(item: LibraryItem) -> str:
    return (item.model or "default") if isinstance(item, Prompt) else ""


prompts, pipelines = make_router("prompt"), make_router("pipeline")
drafts = Router("/", route_handlers=[post_draft])
