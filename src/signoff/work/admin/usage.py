"""Ledger: what was used and what it cost, and the prices that say so."""

from __future__ import annotations

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.model import is_name
from signoff.core.price import Price
from signoff.core.usage import Line, Question, Sum
from signoff.errors import BadRequest, NotFound
from signoff.work.services import Desk


async def look_at_usage(desk: Desk, caller: Caller, question: Question) -> tuple[list[Line], Sum]:
    """A page of sums, and the sum of all: of everybody's jobs for an admin, of their own for all others."""
    mine = question if caller.role == "admin" else msgspec.structs.replace(question, user_id=caller.user_id)
    return await desk.store.ledger.used(mine)


async def look_at_prices(desk: Desk) -> list[Price]:
    """Every price, by model and time."""
    return await desk.store.ledger.prices()


async def set_price(desk: Desk, caller: Caller, price: Price) -> None:
    """Adds a price for an admin. Raises Forbidden, BadRequest."""
    check_admin(caller)
    await add_price(desk, price)


async def add_price(desk: Desk, price: Price) -> None:
    """Adds a price, for every process; jobs that have ended keep their cost. Raises BadRequest."""
    if not is_name(price.model) or "*" in price.model[:-1]:
        raise BadRequest("A price is for the name of a model, which may end in *.")
    await desk.store.ledger.put_price(price)
    desk.prices.forget()


async def drop_price(desk: Desk, caller: Caller, model: str, valid_from: int) -> None:
    """Takes a price away. Raises Forbidden, NotFound."""
    check_admin(caller)
    if not await desk.store.ledger.drop_price(model, valid_from):
        raise NotFound(f"There is no such price of {model!r}.")
    desk.prices.forget()
