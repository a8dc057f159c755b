"""`signoff price`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from signoff.commands.terminal import out, run, stop
from signoff.core.price import Price, dollars, microdollars
from signoff.core.wire import format_time
from signoff.settings import load
from signoff.work.admin.usage import add_price, list_prices
from signoff.work.services import Services

prices = typer.Typer(help="What models cost.")
DAY = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


@prices.command("set")
def price_set(
    model: Annotated[str, typer.Argument(help="May end in *: everything with that prefix.")],
    input_: Annotated[str, typer.Option("--input", help="Dollars a million prompt tokens.")],
    output: Annotated[str, typer.Option("--output", help="Dollars a million completion tokens.")],
    cached_input: Annotated[
        str | None, typer.Option(help="Dollars a million prompt tokens that the upstream had cached.")
    ] = None,
    request: Annotated[str, typer.Option(help="Dollars a request.")] = "0",
    from_: Annotated[datetime | None, typer.Option("--from", formats=DAY, help="UTC; none: now.")] = None,
) -> None:
    """Sets what a model costs from a time on; what has ended keeps its cost."""

    async def put(services: Services) -> None:
        valid_from = services.clock() if from_ is None else round(from_.replace(tzinfo=UTC).timestamp() * 1_000_000)
        cached = None if cached_input is None else _amount(cached_input)
        price = Price(
            model=model,
            valid_from=valid_from,
            input=_amount(input_),
            output=_amount(output),
            cached_input=cached,
            request=_amount(request),
        )
        await add_price(services, price)

    run(load(), put)
    out.print(f"{model} has a price.")


@prices.command("list")
def price_list() -> None:
    """Every price."""
    table = Table("model", "from", "input", "cached input", "output", "request")
    for price in run(load(), list_prices):
        cached = "" if price.cached_input is None else dollars(price.cached_input)
        told = dollars(price.input), cached, dollars(price.output), dollars(price.request)
        table.add_row(price.model, format_time(price.valid_from), *told)
    out.print(table)


def _amount(text: str) -> int:
    try:
        return microdollars(text)
    except ValueError as error:
        stop(str(error))
