"""The page of the response cache: its size, its hits and what they saved; looking up an answer, and deleting some."""

from typing import Any

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.api_paths import CHAT, IN_WORDS, KNOWN
from signoff.core.ask import Ask
from signoff.core.cache import CacheFilter
from signoff.core.job import Job
from signoff.core.times import DAY_US
from signoff.core.usage import UsageQuery, UsageTotals
from signoff.dashboard.content import MAX_SHOWN, answer_of_job
from signoff.dashboard.shell import CACHE, page, redirect, with_status
from signoff.doors.cached import RequestHead
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import parse_form, parse_json
from signoff.errors import BadRequest, SignoffError
from signoff.work.admin.cache import clear_cache, get_cache_size
from signoff.work.admin.usage import usage_report
from signoff.work.call import lookup_cached
from signoff.work.services import Services

EXAMPLE = """{
  "model": "local",
  "messages": [{"role": "user", "content": "Say hello."}],
  "temperature": 0
}"""


class RequestForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the form that looks an answer up."""

    endpoint: str = CHAT
    """Endpoint of the request."""
    body: str = EXAMPLE
    """JSON of the request."""


@get("/dashboard/cache", include_in_schema=False, media_type=MediaType.HTML)
async def show_cache(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Template:
    """Show the size of the cache, and its hits in the last seven days, by model."""
    return await _cache_page(request, services, caller, RequestForm())


@post("/dashboard/cache/lookup", include_in_schema=False, status_code=200, media_type=MediaType.HTML)
async def post_lookup(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Template:
    """Show the answer that the caller would get from the cache for the request of the form; no model is asked."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), RequestForm, "look-up")
    try:
        hit = await lookup_cached(services, _ask(caller, form))
    except SignoffError as error:
        return await _cache_page(request, services, caller, form, error=error)
    return await _cache_page(request, services, caller, form, hit=hit, is_looked_up=True)


def _ask(caller: Caller, form: RequestForm) -> Ask:
    """Return the request of the form. Raises BadRequest, BadBody."""
    if form.endpoint not in KNOWN:
        raise BadRequest(f"`endpoint` must be one of {', '.join(sorted(KNOWN))} (got {form.endpoint[:100]!r}).")
    body = form.body.encode()
    head = parse_json(body, RequestHead, "request")
    return Ask(
        door="pages",
        caller=caller,
        path=form.endpoint,
        body=body,
        target=head.model,
        lane="now",
        cache="always",
        sampling=head,
    )


async def _cache_page(  # noqa: PLR0913 -- the request, its caller, and what the page shows
    request: AnyRequest,
    services: Services,
    caller: Caller,
    form: RequestForm,
    *,
    hit: Job | None = None,
    is_looked_up: bool = False,
    error: SignoffError | None = None,
) -> Template:
    query = UsageQuery(by=("model", "cache"), since=services.clock() - 7 * DAY_US)
    rows, _ = await usage_report(services, caller, query)
    uses = dict[str, dict[str, UsageTotals]]()
    for row in rows:
        uses.setdefault(str(row.dimensions["model"]), {})[str(row.dimensions["cache"])] = row.totals
    shown = page(
        request,
        services,
        caller,
        "cache.html",
        CACHE.name,
        size=await get_cache_size(services, caller, CacheFilter()),
        models=[row for name, each in sorted(uses.items()) if (row := _row(name, each))["hits"] + row["misses"]],
        form=form,
        paths=sorted(IN_WORDS),
        hit=hit,
        answer="" if hit is None else answer_of_job(hit)[:MAX_SHOWN],
        is_looked_up=is_looked_up,
        error=error and error.message,
    )
    return with_status(shown, error)


def _row(name: str, uses: dict[str, UsageTotals]) -> dict[str, Any]:
    """Return the row of a model. Its hits saved their number times the mean cost of a request that was not a hit."""
    hits, misses = uses.get("hit", UsageTotals()), uses.get("miss", UsageTotals())
    is_priced = misses.jobs > misses.unpriced
    saved = hits.jobs * misses.cost_nanodollars // (misses.jobs - misses.unpriced) if is_priced else None
    return {"name": name, "hits": hits.jobs, "misses": misses.jobs, "saved": saved if hits.jobs else 0}


@post("/dashboard/cache/clear", include_in_schema=False, status_code=303)
async def post_clear(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Delete the entry with the key of the form, or all that the caller may delete."""
    check_same_site(scope_of(request))
    key = parse_form(await request.body(), dict[str, str], "selection").get("key", "").strip()
    await clear_cache(services, caller, CacheFilter(key=key or None))
    return redirect(CACHE.path)


router = Router("/", route_handlers=[show_cache, post_lookup, post_clear])
