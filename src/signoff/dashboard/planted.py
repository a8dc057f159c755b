"""Planted items of a policy, for admins: a form to add one, from a job or by hand, and their removal."""

from typing import Any
from urllib.parse import quote

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Template

from signoff.core.access import Caller, check_admin
from signoff.core.api_paths import CHAT
from signoff.core.dialects.convert import convert_answer
from signoff.core.dialects.edited_answer import edited_answer
from signoff.core.job import Job
from signoff.core.json_position import find_syntax_error
from signoff.core.reviews.item import text_of
from signoff.core.reviews.planted import PlantedItem
from signoff.dashboard.shell import POLICIES, page, redirect, with_status
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import parse_form, parse_json
from signoff.errors import BadRequest, SignoffError
from signoff.work.jobs.query import get_job
from signoff.work.reviews.budget_report import drop_planted, plant_item
from signoff.work.reviews.library import get_policy
from signoff.work.services import Services

PATH = "/dashboard/policies/{name:str}/planted"


class PlantedForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the form of a planted item."""

    job: str = ""
    """Id of the job that it is made from; empty for one that is written by hand."""
    payload: str = ""
    """Request, as JSON."""
    answer: str = ""
    """Answer that is known to be wrong: words, or the whole answer as JSON."""


@get(PATH, include_in_schema=False, media_type=MediaType.HTML)
async def show_planted_form(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    name: FromPath[str],
    job: FromQuery[str] = "",
) -> Template:
    """Show the form, filled with the request and the answer of a job if the address names one."""
    check_admin(caller)
    target = (await get_policy(services, caller, name)).target
    example = {"model": target.removesuffix("*") or "MODEL", "messages": [{"role": "user", "content": ""}]}
    form = PlantedForm(payload=_indented(msgspec.json.encode(example)))
    try:
        form = form if not job.strip() else _form_of(await get_job(services, caller, job.strip()))
    except SignoffError as error:
        return await _page(request, services, caller, name, form, error)
    return await _page(request, services, caller, name, form)


@post(PATH, include_in_schema=False, status_code=303, media_type=MediaType.HTML)
async def post_item(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> Template | Response[str]:
    """Add the item, and show those of the policy; or show the form again with what is wrong."""
    check_same_site(scope_of(request))
    check_admin(caller)
    form = parse_form(await request.body(), PlantedForm, "planted item")
    form = msgspec.structs.replace(form, answer=form.answer.replace("\r\n", "\n"))
    try:
        await plant_item(services, caller, await _item(services, caller, name, form))
    except SignoffError as error:
        return await _page(request, services, caller, name, form, error)
    return redirect(f"{POLICIES.path}/{quote(name, safe='')}#planted")


@post(f"{PATH}/{{item_id:int}}/delete", include_in_schema=False, status_code=303)
async def post_delete(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    name: FromPath[str],
    item_id: FromPath[int],
) -> Response[str]:
    """Remove a planted item, and show the others."""
    check_same_site(scope_of(request))
    await drop_planted(services, caller, name, item_id)
    return redirect(f"{POLICIES.path}/{quote(name, safe='')}#budget")


async def _page(
    request: AnyRequest,
    services: Services,
    caller: Caller,
    name: str,
    form: PlantedForm,
    error: SignoffError | None = None,
) -> Template:
    shown = page(
        request,
        services,
        caller,
        "planted.html",
        POLICIES.name,
        policy=await get_policy(services, caller, name),
        form=form,
        error=error and error.message,
    )
    return with_status(shown, error)


def _form_of(job: Job) -> PlantedForm:
    return PlantedForm(job=job.id, payload=_indented(job.body), answer=text_of(job.response))


def _indented(body: bytes) -> str:
    """Return JSON over several lines; another body as it is, which the form then refuses."""
    try:
        return msgspec.json.format(body, indent=2).decode()
    except (ValueError, RecursionError):
        return body.decode(errors="replace")


async def _item(services: Services, caller: Caller, name: str, form: PlantedForm) -> PlantedItem:
    """Return the item that the form describes. Raises BadRequest, JobNotFound."""
    if (place := find_syntax_error(form.payload)) is not None:
        raise BadRequest(f"`payload` is not JSON at line {place[0]}, column {place[1]}.")
    if not form.answer.strip():
        raise BadRequest("`answer` must not be empty; write the wrong answer that a reviewer should catch.")
    body, words = form.payload.encode(), msgspec.json.encode(form.answer)
    answer = form.answer.encode() if _is_object(form.answer) else words
    if form.job:
        job = await get_job(services, caller, form.job)
        if form.answer == text_of(job.response):
            raise BadRequest("`answer` is still that of the job; change it so that it is wrong.")
        return PlantedItem(policy=name, path=job.path, body=body, response=edited_answer(job, answer))
    model = parse_json(body, dict[str, Any], "request").get("model")
    if not isinstance(model, str):
        raise BadRequest("`payload` must be a JSON object with a `model`.")
    created, seed = services.clock() // 1_000_000, services.ids.new_id()
    response = convert_answer(CHAT, answer, model, created=created, seed=seed)
    return PlantedItem(policy=name, path=CHAT, body=body, response=response)


def _is_object(text: str) -> bool:
    return text.lstrip().startswith("{") and find_syntax_error(text) is None


router = Router("/", route_handlers=[show_planted_form, post_item, post_delete])
