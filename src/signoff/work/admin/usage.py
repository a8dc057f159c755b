"""Usage reports, and the prices from which costs are computed."""

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.latency import LatencyQuery, LatencyRow
from signoff.core.model import is_name
from signoff.core.price import Price
from signoff.core.usage import UsageQuery, UsageRow, UsageTotals
from signoff.errors import BadRequest, NotFound
from signoff.work.services import Services


async def usage_report(services: Services, caller: Caller, query: UsageQuery) -> tuple[list[UsageRow], UsageTotals]:
    """Return a page of usage rows and their totals: of all users for an admin, else of the caller."""
    visible = query if caller.role == "admin" else msgspec.structs.replace(query, user_id=caller.user_id)
    return await services.store.usage.report(visible)


async def latency_report(services: Services, caller: Caller, query: LatencyQuery) -> list[LatencyRow]:
    """Return histograms of latencies: of all users for an admin, else of the caller."""
    visible = query if caller.role == "admin" else msgspec.structs.replace(query, user_id=caller.user_id)
    return await services.store.usage.latencies(visible)


async def list_prices(services: Services) -> list[Price]:
    """Return every price, by model and time."""
    return await services.store.usage.prices()


async def set_price(services: Services, caller: Caller, price: Price) -> None:
    """Add a price for an admin. Raises Forbidden, BadRequest."""
    check_admin(caller)
    await add_price(services, price)


async def add_price(services: Services, price: Price) -> None:
    """Add a price, for every process; jobs that have ended keep their cost. Raises BadRequest."""
    if not is_name(price.model) or "*" in price.model[:-1]:
        raise BadRequest(f"`model` must be the name of a model, which may end in * (got {price.model!r}).")
    await services.store.usage.put_price(price)
    services.caches.prices.invalidate()


async def drop_price(services: Services, caller: Caller, model: str, valid_from: int) -> None:
    """Remove the price that is valid from `valid_from`. Raises Forbidden, NotFound."""
    check_admin(caller)
    if not await services.store.usage.drop_price(model, valid_from):
        raise NotFound(f"There is no price of {model!r} that starts at this time; list them with `GET /api/prices`.")
    services.caches.prices.invalidate()
