"""The page of one model, for admins: endpoints, latency, last errors, its log, and forms to change, try or stop it."""

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.decode import check_required
from signoff.core.log import LogLine
from signoff.core.model import Model, with_changes
from signoff.core.model_digest import model_digest
from signoff.core.reviews.item import text_of
from signoff.dashboard.edit_conflict import edit_conflict
from signoff.dashboard.models import CHECK_SECONDS, ModelForm, model_check, models_page, show_models
from signoff.dashboard.shell import MODELS, page, redirect, with_status
from signoff.doors.callers import check_same_site, takes_commands
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, InjectedSettings, scope_of
from signoff.doors.http import parse_form
from signoff.doors.models import parse_model
from signoff.errors import BadRequest, SignoffError, VersionConflict
from signoff.work.admin.latencies import recent_latencies
from signoff.work.admin.model_logs import read_model_log
from signoff.work.admin.models import add_model, change_model, get_model, remove_model, start_model, stop_model
from signoff.work.admin.try_model import try_model
from signoff.work.services import Services

MAX_LINES = 100
# Defaults of a model's members; the form leaves out members that equal them.
_DEFAULT = msgspec.to_builtins(Model(name="", kind=""))
# Members that the form never has.
_HIDDEN = frozenset({"name", "key_id"})
PATH = "/dashboard/models/{name:path}"


@post("/dashboard/models", include_in_schema=False, status_code=303, media_type=MediaType.HTML)
async def post_model(
    request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings, caller: InjectedCaller
) -> Template | Response[str]:
    """Register a model, and show it; or show the form again with what is wrong."""
    form, may_set_command = await _form(request), takes_commands(door_settings, scope_of(request))
    try:
        changes, keys = parse_model(_with_key(form))
        check_required(changes, "kind")
        model = with_changes(Model(name=form.name.strip(), kind=changes["kind"]), changes)
        await add_model(services, caller, model, keys, may_set_command=may_set_command, is_new=True)
    except SignoffError as error:
        return await models_page(request, services, caller, form, error)
    return redirect(_address(model.name))


@get(PATH, include_in_schema=False, media_type=MediaType.HTML)
async def show_model(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> Template:
    """Show the model."""
    return await _model_page(request, services, caller, name.removeprefix("/"))


@post(PATH, include_in_schema=False, status_code=303, media_type=MediaType.HTML)
async def post_action(
    request: AnyRequest,
    services: InjectedServices,
    door_settings: InjectedSettings,
    caller: InjectedCaller,
    name: FromPath[str],
) -> Template | Response[str]:
    """Change, start, stop or remove the model, or try it; then show it, or what is wrong."""
    form, name = await _form(request), name.removeprefix("/")
    try:
        match form.action:
            case "try":
                return await _try(request, services, caller, name, form)
            case "start":
                await start_model(services, caller, name)
            case "stop":
                await stop_model(services, caller, name)
            case "remove":
                await remove_model(services, caller, name)
                return redirect(MODELS.path)
            case _:
                changes, keys = parse_model(_with_key(form))
                may_set_command = takes_commands(door_settings, scope_of(request))
                complete, expected = _complete(changes), form.expected
                await change_model(
                    services, caller, name, complete, keys, may_set_command=may_set_command, expected_digest=expected
                )
    except SignoffError as error:
        return await _model_page(request, services, caller, name, form=form, error=error)
    return redirect(_address(name))


async def _try(request: AnyRequest, services: Services, caller: Caller, name: str, form: ModelForm) -> Template:
    """Send one request to the model, and show the answer or the error that a caller would get, and the duration."""
    began = services.clock()
    try:
        answer, error = text_of(await try_model(services, caller, name, msgspec.json.encode(form.question))), None
    except SignoffError as failure:
        if failure.status in {400, 401, 403}:
            raise
        answer, error = "", failure
    trial = {"answer": answer, "error": error, "us": services.clock() - began}
    return await _model_page(request, services, caller, name, form=form, trial=trial)


async def _model_page(  # noqa: PLR0913 -- the request, its caller, and what the page shows
    request: AnyRequest,
    services: Services,
    caller: Caller,
    name: str,
    *,
    form: ModelForm | None = None,
    error: SignoffError | None = None,
    trial: dict[str, Any] | None = None,
) -> Template:
    status = await get_model(services, caller, name)
    lines, own = await _log_of(services, caller, name)
    latencies, examined = await recent_latencies(services, caller)
    conflict = None
    if form is not None and isinstance(error, VersionConflict):
        texts = _text(status.model), form.body.replace("\r\n", "\n")
        conflict = await edit_conflict(services, caller, f"model:{name}", None, texts)
        error = conflict.error
        error.message += " Enter the API key again." if form.key else ""
    keeps_digest = form is not None and form.action == "save" and conflict is None
    shown = page(
        request,
        services,
        caller,
        "model.html",
        MODELS.name,
        model=status.model,
        is_registered=status.is_registered,
        process=status.state,
        health=await model_check(services, status.model),
        latency=latencies.get(name),
        examined=examined,
        lines=lines[-MAX_LINES:],
        own_lines=own[-MAX_LINES:],
        body=form.body if form and form.body else _text(status.model),
        question=form.question if form and form.question else "Hello.",
        error=error and error.message,
        trial=trial,
        expected=form.expected if form is not None and keeps_digest else model_digest(status.model),
        conflict=conflict,
    )
    return with_status(shown, error)


async def _log_of(services: Services, caller: Caller, name: str) -> tuple[Sequence[LogLine], list[str]]:
    """Return the log of the model, and its own log if it has one and answers in time."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            lines, own = await read_model_log(services, caller, name)
    except (TimeoutError, SignoffError) as error:
        return [], [f"The log could not be read: {error or 'the model did not answer in time'}."]
    return lines, [bytes(each).decode(errors="replace") for each in own]


async def _form(request: AnyRequest) -> ModelForm:
    check_same_site(scope_of(request))
    return parse_form(await request.body(), ModelForm, "model")


def _with_key(form: ModelForm) -> bytes:
    """Return the JSON of the form with the key. Raises BadBody, BadRequest."""
    if not form.key.strip():
        return form.body.encode()
    try:
        members = msgspec.json.decode(form.body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadRequest(f"`body` must be a JSON object: {error}.") from None
    return msgspec.json.encode(members | {"key": form.key.strip()})


def _complete(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changes with the default of each member that the text leaves out, as the text is the whole model."""
    plain = Model(name="", kind="")
    names = [name for name in Model.__struct_fields__ if name not in _HIDDEN | {"kind"}]
    defaults = {part: msgspec.structs.asdict(getattr(plain, part)) for part in ("timeouts", "limits")}
    parts = {part: members | changes.get(part, {}) for part, members in defaults.items()}
    return {name: getattr(plain, name) for name in names} | changes | parts


def _text(model: Model) -> str:
    """Return the JSON of a model as an admin writes it: its kind, and what differs from the defaults."""
    members = {each: value for each, value in msgspec.to_builtins(model).items() if each not in _HIDDEN}
    shown = {each: value for each, value in members.items() if each == "kind" or value != _DEFAULT[each]}
    if "endpoints" in shown:
        shown["endpoints"] = [
            {name: value for name, value in each.items() if name != "key_id" and value is not None}
            for each in shown["endpoints"]
        ]
    return msgspec.json.format(msgspec.json.encode(shown), indent=2).decode()


def _address(name: str) -> str:
    return f"{MODELS.path}/{quote(name)}"


router = Router("/", route_handlers=[show_models, post_model, show_model, post_action])
