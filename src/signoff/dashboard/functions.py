"""The page of functions that pipelines can call, and the sync that registers what the files define."""

from typing import Any

from litestar import MediaType, Router, get, post
from litestar.params import FromQuery
from litestar.response import Template

from signoff.core.pipelines.function import Function
from signoff.dashboard.shell import FUNCTIONS, page
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.work.pipelines.functions import list_functions, preview_sync, sync_functions

MAX_LISTED = 100


@get("/dashboard/functions", include_in_schema=False, media_type=MediaType.HTML)
async def show_functions(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, after: FromQuery[str] = ""
) -> Template:
    """Show a page of the registered functions, by name."""
    functions = await list_functions(services, after=after, limit=MAX_LISTED)
    return page(
        request,
        services,
        caller,
        "functions.html",
        FUNCTIONS.name,
        functions=[{"function": each, "signature": _signature(each)} for each in functions],
        next_name=functions[-1].name if len(functions) == MAX_LISTED else None,
        report=None,
    )


@post("/dashboard/functions/sync", include_in_schema=False, status_code=200, media_type=MediaType.HTML)
async def post_sync(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Template:
    """Register what the files define, and show what was added and dropped."""
    check_same_site(scope_of(request))
    report = await sync_functions(services, caller)
    return page(
        request, services, caller, "functions.html", FUNCTIONS.name, functions=[], next_name=None, report=report
    )


@post("/dashboard/functions/preview", include_in_schema=False, status_code=200, media_type=MediaType.HTML)
async def post_preview(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Template:
    """Show what the files define and a sync would add and drop. Nothing is changed, but the files are executed."""
    check_same_site(scope_of(request))
    report = await preview_sync(services, caller)
    context: dict[str, Any] = {"functions": [], "next_name": None, "report": report, "is_preview": True}
    return page(request, services, caller, "functions.html", FUNCTIONS.name, **context)


def _signature(function: Function) -> str:
    """Return the name with its parameters, as in Python."""
    params = [f"{param.name}={param.default}" if param.has_default else param.name for param in function.params]
    return f"{function.name}({', '.join(params)})"


router = Router("/", route_handlers=[show_functions, post_sync, post_preview])
