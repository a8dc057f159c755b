"""`signoff limit`: limits of requests, tokens and costs."""

from typing import Annotated

import msgspec
import typer

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import out, print_table, run, stop, table_of
from signoff.core.price import NANO, dollars, nanodollars
from signoff.settings import load
from signoff.work.admin.limits import COSTS, COUNTS, all_limits, delete_limit, limit_for, limit_subject, put_limit
from signoff.work.services import Services

limits = CommandGroup("Manage limits of requests, tokens and costs.", panel="Configuration")
Who = Annotated[str, typer.Argument(metavar="WHO", help="all (users together), each (user), user:EMAIL, or token:ID.")]
ForModel = Annotated[str | None, typer.Option(help="Limit only requests to this model.")]


@limits.register(
    "set",
    "signoff limit set each --requests 60 --dollars-day 5",
    "signoff limit set user:ann@example.com --model gpt-4o --tokens-day 1000000",
)
def limit_set(
    who: Who,
    model: ForModel = None,
    requests: Annotated[int | None, typer.Option(help="Requests in any minute.", min=0)] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens in any minute.", min=0)] = None,
    parallel: Annotated[int | None, typer.Option(help="Requests at the same time.", min=0)] = None,
    tokens_day: Annotated[int | None, typer.Option(help="Tokens in a day (UTC).", min=0)] = None,
    tokens_month: Annotated[int | None, typer.Option(help="Tokens in a month (UTC).", min=0)] = None,
    dollars_day: Annotated[str | None, typer.Option(metavar="<DOLLARS>", help="Dollars in a day (UTC).")] = None,
    dollars_month: Annotated[str | None, typer.Option(metavar="<DOLLARS>", help="Dollars in a month (UTC).")] = None,
) -> None:
    """Set a limit, in place of an earlier one; running servers apply it within a second."""
    values = dict(zip(COUNTS, (requests, tokens, parallel, tokens_day, tokens_month), strict=True))
    costs = _amount("dollars-day", dollars_day), _amount("dollars-month", dollars_month)
    values |= dict(zip(COSTS, costs, strict=True))

    async def put(services: Services) -> None:
        await put_limit(services, msgspec.structs.replace(await limit_for(services, who, model), **values))

    run(load(), put)
    out.print(f"The limit for {who} is set.")


@limits.register("list", "signoff limit list")
def limit_list() -> None:
    """List all limits, with a line for each number."""
    table = table_of("who", "model", "limit", "at most")
    for limit in run(load(), all_limits):
        for name in (*COUNTS, *COSTS):
            if (value := getattr(limit, name)) is not None:
                amount = dollars(value, NANO) if name in COSTS else str(value)
                table.add_row(limit_subject(limit), limit.model or "", name, amount)
    print_table(table)


@limits.register("remove", "signoff limit remove each")
def limit_remove(who: Who, model: ForModel = None) -> None:
    """Remove a limit."""

    async def drop(services: Services) -> None:
        await delete_limit(services, await limit_for(services, who, model))

    run(load(), drop)
    out.print(f"The limit for {who} is removed.")


def _amount(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else nanodollars(text)
    except ValueError as error:
        stop(f"--{option}: {error}")
