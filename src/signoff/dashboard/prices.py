"""The page of prices, for admins: what models cost, since when, and which models without a price were used lately."""

from typing import Any

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromQuery
from litestar.response import Template

from signoff.core.access import Caller, check_admin
from signoff.core.price import dollars
from signoff.core.times import DAY_US
from signoff.core.usage import UsageQuery
from signoff.core.wire import format_time
from signoff.dashboard.shell import PRICES, page, redirect, with_status
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import parse_fields, parse_form
from signoff.doors.usage import NewPrice, parse_microseconds, parse_price
from signoff.errors import SignoffError
from signoff.work.admin.registry import all_models
from signoff.work.admin.usage import drop_price, list_prices, set_price, usage_report
from signoff.work.services import Services

DAYS = 31
# Price of a million tokens, or of a request.
AMOUNTS = {
    "input": "Tokens in, a million",
    "cached_input": "Cached tokens in, a million",
    "output": "Tokens out, a million",
    "request": "Each request",
}


class PriceForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the form of a price; amounts are dollars, as decimal text."""

    model: str = ""
    """Name of the model; it may end in `*`."""
    input: str = ""
    """Price of a million prompt tokens."""
    cached_input: str = ""
    """Price of a million prompt tokens from the upstream's cache; empty for that of other ones."""
    output: str = ""
    """Price of a million completion tokens."""
    request: str = ""
    """Price of a request; empty for none."""
    valid_from: str = ""
    """Time, UTC, from which it is valid; empty for now."""


@get("/dashboard/prices", include_in_schema=False, media_type=MediaType.HTML)
async def show_prices(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, model: FromQuery[str] = ""
) -> Template:
    """Show all prices; `model` fills the form with the name of a model."""
    return await _prices_page(request, services, caller, PriceForm(model=model))


@post("/dashboard/prices", include_in_schema=False, status_code=303, media_type=MediaType.HTML)
async def post_price(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller
) -> Template | Response[str]:
    """Set a price, and show all; or show the form again with what is wrong."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), PriceForm, "price")
    try:
        await set_price(services, caller, parse_price(_new(form), services.clock()))
    except SignoffError as error:
        return await _prices_page(request, services, caller, form, error)
    return redirect(PRICES.path)


@post("/dashboard/prices/delete", include_in_schema=False, status_code=303)
async def post_removal(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Remove a price, and show the others. Jobs that have ended keep their cost."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), PriceForm, "price")
    await drop_price(services, caller, form.model, parse_microseconds("valid_from", form.valid_from))
    return redirect(PRICES.path)


def _new(form: PriceForm) -> NewPrice:
    fields = {
        "model": form.model.strip(),
        "input": form.input.strip() or "0",
        "output": form.output.strip() or "0",
        "cached_input": form.cached_input.strip() or None,
        "request": form.request.strip() or "0",
        "valid_from": form.valid_from.strip() or None,
    }
    return parse_fields(fields, NewPrice, "price")


async def _prices_page(
    request: AnyRequest, services: Services, caller: Caller, form: PriceForm, error: SignoffError | None = None
) -> Template:
    check_admin(caller)
    query = UsageQuery(by=("model",), since=services.clock() - DAYS * DAY_US)
    rows, _ = await usage_report(services, caller, query)
    prices = sorted(await list_prices(services), key=lambda price: (price.model, -price.valid_from))
    shown = page(
        request,
        services,
        caller,
        "prices.html",
        PRICES.name,
        prices=[_row(price) for price in prices],
        unpriced=[(row.dimensions["model"], row.totals.unpriced) for row in rows if row.totals.unpriced],
        models=[each.name for each in await all_models(services)],
        amounts=AMOUNTS,
        days=DAYS,
        form=form,
        error=error and error.message,
    )
    return with_status(shown, error)


def _row(price: Any) -> dict[str, Any]:
    amounts = {name: getattr(price, name) for name in AMOUNTS}
    return {
        "price": price,
        "amounts": {name: "" if amount is None else f"${dollars(amount)}" for name, amount in amounts.items()},
        "valid_from": format_time(price.valid_from),
    }


router = Router("/", route_handlers=[show_prices, post_price, post_removal])
