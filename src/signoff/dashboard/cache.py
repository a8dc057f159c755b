"""The page of the response cache: its size and hits, and deleting answers. The jobs stay."""

from litestar import MediaType, Response, Router, get, post
from litestar.response import Template

from signoff.core.cache import CacheFilter
from signoff.core.usage import DAY_US, UsageQuery
from signoff.dashboard.shell import CACHE, page
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import parse_form
from signoff.work.admin.cache import clear_cache, get_cache_size
from signoff.work.admin.usage import usage_report


@get("/dashboard/cache", include_in_schema=False, media_type=MediaType.HTML)
async def show_cache(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Template:
    """Show the size of the cache, and its hits in the last seven days, by model."""
    query = UsageQuery(by=("model", "cache"), since=services.clock() - 7 * DAY_US)
    rows, _ = await usage_report(services, caller, query)
    counts = dict[str, dict[str, int]]()
    for row in rows:
        name, use = str(row.dimensions["model"]), str(row.dimensions["cache"])
        counts.setdefault(name, {})[use] = row.totals.jobs
    size = await get_cache_size(services, caller, CacheFilter())
    models = [(name, uses) for name, uses in sorted(counts.items()) if uses.get("hit") or uses.get("miss")]
    return page(request, services, caller, "cache.html", CACHE.name, size=size, models=models)


@post("/dashboard/cache/clear", include_in_schema=False, status_code=303)
async def post_clear(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Delete the entry with the key of the form, or all that the caller may delete."""
    check_same_site(scope_of(request))
    key = parse_form(await request.body(), dict[str, str], "selection").get("key", "").strip()
    await clear_cache(services, caller, CacheFilter(key=key or None))
    return Response("", status_code=303, headers={"location": CACHE.path})


router = Router("/", route_handlers=[show_cache, post_clear])
