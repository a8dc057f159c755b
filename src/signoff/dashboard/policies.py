"""The pages of review policies, for admins: rules with what they did lately, versions, a dry run, the error budget."""

from urllib.parse import urlencode

from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Template

from signoff.core.access import Caller
from signoff.dashboard.budget import BudgetQuery
from signoff.dashboard.edit_conflict import expected_version
from signoff.dashboard.policy_page import (
    TITLES,
    PolicyForm,
    draft_of,
    policy_address,
    policy_page,
    read_form,
    with_position,
)
from signoff.dashboard.shell import POLICIES, page, redirect, with_status
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import INTS, parse_digits
from signoff.errors import BadRequest, NotFound, SignoffError
from signoff.work.reviews.budget_report import restart_budget
from signoff.work.reviews.dry_run import dry_run
from signoff.work.reviews.library import get_policy, list_policies, remove_policy, save_policy
from signoff.work.reviews.recommend import recommend
from signoff.work.reviews.ruling_count import count_rulings
from signoff.work.services import Services

MAX_LISTED = 50
EXAMPLE = """{
  "target": "*",
  "rules": [
    {"if": "answer.tool_calls.size() > 0", "then": "hold"}
  ],
  "default": {"then": "pass"}
}"""


@get("/dashboard/policies", include_in_schema=False, media_type=MediaType.HTML)
async def show_policies(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, after: FromQuery[str] = ""
) -> Template:
    """Show a page of the policies, by name, and the form of a new one."""
    return await _list_page(request, services, caller, PolicyForm(body=EXAMPLE), after=after)


@post("/dashboard/policies", include_in_schema=False, status_code=303, media_type=MediaType.HTML)
async def post_policy(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller
) -> Template | Response[str]:
    """Save a new policy, and show it; or show the form again with what is wrong."""
    form = await read_form(request)
    name = form.name.strip()
    try:
        if await _exists(services, caller, name):
            raise BadRequest(f"There is a policy {name!r} already; choose another `name`, or open it to change it.")
        await save_policy(services, caller, name, draft_of(form), expected_version=0)
    except SignoffError as error:
        return await _list_page(request, services, caller, form, error=error)
    return redirect(policy_address(name))


@get("/dashboard/policies/{name:str}", include_in_schema=False, media_type=MediaType.HTML)
async def show_policy(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    name: FromPath[str],
    version: FromQuery[str] = "",
) -> Template:
    """Show a version of the policy, by default the one that applies, and its error budget."""
    number = parse_digits(version)
    place = BudgetQuery(request.query_params.get("group"), request.query_params.get("groups_after"))
    number = number if number and number < INTS else None
    return await policy_page(request, services, caller, name, version=number, place=place)


@post("/dashboard/policies/{name:str}", include_in_schema=False, status_code=303, media_type=MediaType.HTML)
async def post_version(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> Template | Response[str]:
    """Save a new version, and show it; or show the form again with what is wrong, or what was saved meanwhile."""
    form = await read_form(request)
    try:
        expected = expected_version(form.expected)
        await save_policy(services, caller, name, draft_of(form), expected_version=expected)
    except SignoffError as error:
        return await policy_page(request, services, caller, name, form=form, error=error)
    return redirect(policy_address(name))


@post("/dashboard/policies/{name:str}/dry-run", include_in_schema=False, status_code=200, media_type=MediaType.HTML)
async def post_dry_run(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> Template:
    """Judge past answers by the draft of the form, and show what it would have done. Nothing is saved."""
    form = await read_form(request)
    try:
        result = await dry_run(services, caller, name, last=parse_digits(form.last) or 0, draft=draft_of(form))
    except SignoffError as error:
        return await policy_page(request, services, caller, name, form=form, error=error)
    return await policy_page(request, services, caller, name, form=form, trial=result)


@post(
    "/dashboard/policies/{name:str}/recommendation",
    include_in_schema=False,
    status_code=200,
    media_type=MediaType.HTML,
)
async def post_recommendation(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> Template:
    """Show a rule that is fitted to what people decided, with what it would do. Nothing is saved."""
    check_same_site(scope_of(request))
    try:
        result = await recommend(services, caller, name)
    except SignoffError as error:
        return await policy_page(request, services, caller, name, error=error)
    return await policy_page(request, services, caller, name, recommended=result)


@post("/dashboard/policies/{name:str}/draft", include_in_schema=False, status_code=200, media_type=MediaType.HTML)
async def post_draft(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> Template:
    """Show a draft in the form of the policy, from where it can be tried and saved."""
    return await policy_page(request, services, caller, name, form=await read_form(request))


@post("/dashboard/policies/{name:str}/delete", include_in_schema=False, status_code=303)
async def post_delete(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> Response[str]:
    """Delete the policy, and show the others."""
    check_same_site(scope_of(request))
    await remove_policy(services, caller, name)
    return redirect(POLICIES.path)


@post("/dashboard/policies/{name:str}/restart", include_in_schema=False, status_code=303)
async def post_restart(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    name: FromPath[str],
    group: FromQuery[str | None] = None,
) -> Response[str]:
    """Start a new period of the error budget, or of one group of it, and show it."""
    check_same_site(scope_of(request))
    await restart_budget(services, caller, name, group)
    query = "" if group is None else f"?{urlencode({'group': group})}"
    return redirect(f"{policy_address(name)}{query}#budget")


async def _exists(services: Services, caller: Caller, name: str) -> bool:
    try:
        await get_policy(services, caller, name)
    except NotFound:
        return False
    return True


async def _list_page(
    request: AnyRequest,
    services: Services,
    caller: Caller,
    form: PolicyForm,
    *,
    after: str = "",
    error: SignoffError | None = None,
) -> Template:
    policies = await list_policies(services, caller, after=after, limit=MAX_LISTED)
    counts = await count_rulings(services, caller)
    shown = page(
        request,
        services,
        caller,
        "policies.html",
        POLICIES.name,
        policies=[{"policy": each, "counts": counts.of_policy(each.name)} for each in policies],
        next_name=policies[-1].name if len(policies) == MAX_LISTED else None,
        counts=counts,
        outcomes=TITLES,
        form=form,
        error=error and with_position(form.body, error),
    )
    return with_status(shown, error)


router = Router(
    "/",
    route_handlers=[
        show_policies,
        post_policy,
        show_policy,
        post_version,
        post_dry_run,
        post_recommendation,
        post_draft,
        post_delete,
        post_restart,
    ],
)
