"""`signoff price`: prices of models."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import out, print_table, run, stop, table_of
from signoff.core.price import Price, dollars, microdollars
from signoff.core.wire import format_time
from signoff.settings import load
from signoff.work.admin.usage import add_price, list_prices
from signoff.work.services import Services

prices = CommandGroup("Manage prices of models.", panel="Configuration")
DATE_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


@prices.register("set", "signoff price set gpt-4o --input 2.50 --cached-input 1.25 --output 10")
def price_set(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of the model; it may end in *, for all names with that prefix.")
    ],
    input_: Annotated[str, typer.Option("--input", help="Dollars for a million prompt tokens.")],
    output: Annotated[str, typer.Option("--output", help="Dollars for a million completion tokens.")],
    cached_input: Annotated[str | None, typer.Option(help="Dollars for a million cached prompt tokens.")] = None,
    request: Annotated[str, typer.Option(help="Dollars for each request.")] = "0",
    from_: Annotated[
        datetime | None, typer.Option("--from", formats=DATE_FORMATS, help="Start (UTC); default: now.")
    ] = None,
) -> None:
    """Set the price of a model from a time on; jobs that have ended keep their cost."""
    cached = None if cached_input is None else _amount("cached-input", cached_input)
    texts = {"input": input_, "output": output, "request": request}
    amounts = {option: _amount(option, text) for option, text in texts.items()}

    async def put(services: Services) -> None:
        valid_from = services.clock() if from_ is None else round(from_.replace(tzinfo=UTC).timestamp() * 1_000_000)
        await add_price(services, Price(model=model, valid_from=valid_from, cached_input=cached, **amounts))

    run(load(), put)
    out.print(f"The price of {model} is set.")


@prices.register("list", "signoff price list")
def price_list() -> None:
    """List all prices."""
    table = table_of("model", "from", "input", "cached input", "output", "request")
    for price in run(load(), list_prices):
        cached = "" if price.cached_input is None else dollars(price.cached_input)
        amounts = dollars(price.input), cached, dollars(price.output), dollars(price.request)
        table.add_row(price.model, format_time(price.valid_from), *amounts)
    print_table(table)


def _amount(option: str, text: str) -> int:
    try:
        return microdollars(text)
    except ValueError as error:
        stop(f"--{option}: {error}")
