"""Ledger: what was used and what it cost, and the prices that say so."""

from __future__ import annotations

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.model import is_name
from signoff.core.price import Price
from signoff.core.usage import UsageQuery, UsageRow, UsageTotals
from signoff.errors import BadRequest, NotFound
from signoff.work.services import Services


async def usage_report(services: Services, caller: Caller, question: UsageQuery) -> tuple[list[UsageRow], UsageTotals]:
    """A page of sums, and the sum of all: of everybody's jobs for an admin, of their own for all others."""
    mine = question if caller.role == "admin" else msgspec.structs.replace(question, user_id=caller.user_id)
    return await services.store.usage.report(mine)


async def list_prices(services: Services) -> list[Price]:
    """Every price, by model and time."""
    return await services.store.usage.prices()


async def set_price(services: Services, caller: Caller, price: Price) -> None:
    """Adds a price for an admin. Raises Forbidden, BadRequest."""
    check_admin(caller)
    await add_price(services, price)


async def add_price(services: Services, price: Price) -> None:
    """Adds a price, for every process; jobs that have ended keep their cost. Raises BadRequest."""
    if not is_name(price.model) or "*" in price.model[:-1]:
        raise BadRequest("A price is for the name of a model, which may end in *.")
    await services.store.usage.put_price(price)
    services.caches.prices.invalidate()


async def drop_price(services: Services, caller: Caller, model: str, valid_from: int) -> None:
    """Takes a price away. Raises Forbidden, NotFound."""
    check_admin(caller)
    if not await services.store.usage.drop_price(model, valid_from):
        raise NotFound(f"There is no such price of {model!r}.")
    services.caches.prices.invalidate()
