"""The page of limits: how much of each is used, when it is free again, who was refused, and the form for admins."""

from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromQuery
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.allowances import Allowance, allowances
from signoff.core.limits import Limit, LimitKind
from signoff.core.price import NANO, dollars
from signoff.dashboard.shell import LIMITS, format_cost, page, redirect, with_status
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import parse_digits, parse_fields, parse_form
from signoff.doors.limits import LimitDescription, save_limit
from signoff.errors import BadRequest, SignoffError
from signoff.work.admin.limits import (
    COSTS,
    COUNTS,
    REFUSAL_DAYS,
    LimitStatus,
    limit_subject,
    list_limits,
    list_refusals,
    remove_limit,
)
from signoff.work.admin.registry import all_models
from signoff.work.services import Services

WORDS: dict[str, str] = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "parallel": "requests at once",
    "tokens_per_day": "tokens a day",
    "tokens_per_month": "tokens a month",
    "cost_per_day": "dollars a day",
    "cost_per_month": "dollars a month",
}
# Kinds of refusals that have another name than the number of the limit.
KINDS: dict[LimitKind, str] = {"requests": "requests_per_minute", "tokens": "tokens_per_minute"}


class LimitForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the form of a limit; an empty number is no limit."""

    who: str = ""
    """Subject: `all`, `each`, `user:EMAIL` or `token:ID`."""
    model: str = ""
    """Name of the model; empty for all models together."""
    requests_per_minute: str = ""
    """Requests in any 60 seconds."""
    tokens_per_minute: str = ""
    """Tokens in any 60 seconds."""
    parallel: str = ""
    """Requests at the same time."""
    tokens_per_day: str = ""
    """Tokens in a day."""
    tokens_per_month: str = ""
    """Tokens in a month."""
    cost_per_day: str = ""
    """Dollars in a day."""
    cost_per_month: str = ""
    """Dollars in a month."""


@get("/dashboard/limits", include_in_schema=False, media_type=MediaType.HTML)
async def show_limits(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    who: FromQuery[str] = "",
    model: FromQuery[str] = "",
) -> Template:
    """Show all limits to an admin, and to others their own; `who` and `model` fill the form with one of them."""
    return await _limits_page(request, services, caller, who=who, model=model)


@post("/dashboard/limits", include_in_schema=False, status_code=303, media_type=MediaType.HTML)
async def post_limit(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller
) -> Template | Response[str]:
    """Set a limit, and show all; or show the form again with what is wrong."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), LimitForm, "limit")
    try:
        await save_limit(services, caller, form.who.strip(), form.model.strip() or None, _description(form))
    except SignoffError as error:
        return await _limits_page(request, services, caller, form=form, error=error)
    return redirect(LIMITS.path)


@post("/dashboard/limits/delete", include_in_schema=False, status_code=303)
async def post_removal(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Remove a limit, and show the others."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), LimitForm, "limit")
    await remove_limit(services, caller, form.who, form.model or None)
    return redirect(LIMITS.path)


async def _limits_page(  # noqa: PLR0913 -- the request, its caller, and what the page shows
    request: AnyRequest,
    services: Services,
    caller: Caller,
    *,
    who: str = "",
    model: str = "",
    form: LimitForm | None = None,
    error: SignoffError | None = None,
) -> Template:
    statuses, now = await list_limits(services, caller), services.clock()
    chosen = next((each for each in statuses if _subject(each) == (who, model or None)), None)
    names = {each.limit.name: each.limit for each in statuses}
    shown = page(
        request,
        services,
        caller,
        "limits.html",
        LIMITS.name,
        limits=[_row(each, now) for each in statuses],
        refusals=[
            {"refusal": each, "limit": names.get(each.limit_name), "words": WORDS[KINDS.get(each.kind, each.kind)]}
            for each in await list_refusals(services, caller)
        ],
        days=REFUSAL_DAYS,
        words=WORDS,
        form=form or (LimitForm(who=who, model=model) if chosen is None else _form_of(chosen)),
        is_change=chosen is not None,
        error=error and error.message,
        models=[each.name for each in await all_models(services)],
    )
    return with_status(shown, error)


def _subject(status: LimitStatus) -> tuple[str, str | None]:
    return limit_subject(status.limit), status.limit.model


def _row(status: LimitStatus, now: int) -> dict[str, Any]:
    who, model = _subject(status)
    rows = [] if status.used is None else [_allowance(each) for each in allowances(status.limit, status.used, now)]
    return {
        "who": who,
        "model": model,
        "name": status.limit.name,
        "query": urlencode({"who": who, "model": model or ""}),
        "allowances": rows,
        "numbers": limit_words(status.limit),
    }


def limit_words(limit: Limit) -> str:
    """Return the numbers of a limit that are set, in words."""
    numbers = {name: getattr(limit, name) for name in WORDS if getattr(limit, name) is not None}
    return ", ".join(
        f"{_number(name, number)} {WORDS[name].removeprefix('dollars ')}" for name, number in numbers.items()
    )


def _allowance(each: Allowance) -> dict[str, Any]:
    share = min(1.0, each.used / each.most) if each.most else 1.0
    return {
        "allowance": each,
        "words": WORDS[each.name].removeprefix("dollars "),
        "used": _number(each.name, each.used),
        "most": _number(each.name, each.most),
        "reserved": _number(each.name, each.reserved) if each.reserved else "",
        "width": round(share * 100, 1),
        "level": "full" if each.is_exhausted else "high" if share >= 0.8 else "",
    }


def _number(name: str, number: int) -> str:
    return format_cost(number) if name in COSTS else f"{number:,}"


def _form_of(status: LimitStatus) -> LimitForm:
    who, model = _subject(status)
    limit = status.limit
    numbers = {name: getattr(limit, name) for name in COUNTS if getattr(limit, name) is not None}
    costs = {name: dollars(getattr(limit, name), NANO) for name in COSTS if getattr(limit, name) is not None}
    return LimitForm(who=who, model=model or "", **{name: str(each) for name, each in (numbers | costs).items()})


def _description(form: LimitForm) -> LimitDescription:
    costs = {name: getattr(form, name).strip() or None for name in COSTS}
    counts = {name: _whole(name, getattr(form, name).strip()) for name in COUNTS}
    return parse_fields(counts | costs, LimitDescription, "limit")


def _whole(name: str, text: str) -> int | None:
    """Return a whole number; None for an empty text. Raises BadRequest."""
    if not text:
        return None
    if (number := parse_digits(text.replace(",", ""))) is None:
        raise BadRequest(f"`{name}` must be a whole number, or empty for no limit (got {text!r}).")
    return number


router = Router("/", route_handlers=[show_limits, post_limit, post_removal])
