"""`signoff limit`."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer
from rich.table import Table

from signoff.commands.terminal import out, run, stop
from signoff.core.price import NANO, dollars, nanodollars
from signoff.settings import load
from signoff.work.admin.limits import COSTS, COUNTS, all_limits, delete_limit, limit_for, limit_subject, put_limit
from signoff.work.services import Services

limits = typer.Typer(help="Limits.")
Whose = Annotated[str, typer.Argument(metavar="WHO", help="all (together), each (user), user:EMAIL, or token:ID.")]
Of = Annotated[str | None, typer.Option(help="Of this model alone.")]


@limits.command("set")
def limit_set(
    who: Whose,
    model: Of = None,
    requests: Annotated[int | None, typer.Option(help="In any minute.", min=0)] = None,
    tokens: Annotated[int | None, typer.Option(help="In any minute.", min=0)] = None,
    parallel: Annotated[int | None, typer.Option(help="Requests at a time.", min=0)] = None,
    tokens_day: Annotated[int | None, typer.Option(help="In a day, UTC.", min=0)] = None,
    tokens_month: Annotated[int | None, typer.Option(help="In a month, UTC.", min=0)] = None,
    dollars_day: Annotated[str | None, typer.Option(help="In a day, UTC.")] = None,
    dollars_month: Annotated[str | None, typer.Option(help="In a month, UTC.")] = None,
) -> None:
    """Sets a limit in the place of the one that was there; running servers know it within a second."""
    numbers = dict(zip(COUNTS, (requests, tokens, parallel, tokens_day, tokens_month), strict=True))
    numbers |= dict(zip(COSTS, (_amount(dollars_day), _amount(dollars_month)), strict=True))

    async def put(services: Services) -> None:
        await put_limit(services, msgspec.structs.replace(await limit_for(services, who, model), **numbers))

    run(load(), put)
    out.print(f"{who} is limited.")


@limits.command("list")
def limit_list() -> None:
    """Every limit."""
    table = Table("who", "model", "requests", "tokens", "parallel", "a day", "a month", "$ a day", "$ a month")
    for limit in run(load(), all_limits):
        counts = ("" if (most := getattr(limit, name)) is None else str(most) for name in COUNTS)
        costs = ("" if (most := getattr(limit, name)) is None else dollars(most, NANO) for name in COSTS)
        table.add_row(limit_subject(limit), limit.model or "", *counts, *costs)
    out.print(table)


@limits.command("remove")
def limit_remove(who: Whose, model: Of = None) -> None:
    """They may use as much as they like."""

    async def drop(services: Services) -> None:
        await delete_limit(services, await limit_for(services, who, model))

    run(load(), drop)
    out.print(f"{who} is limited no more.")


def _amount(text: str | None) -> int | None:
    try:
        return None if text is None else nanodollars(text)
    except ValueError as error:
        stop(str(error))
