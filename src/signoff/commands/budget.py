"""`signoff budget`: show, restart and compute error budgets."""

from typing import Annotated

import typer

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import OPERATOR, out, print_table, run, stop, table_of
from signoff.core.reviews.error_budget import upper_bound
from signoff.settings import load
from signoff.work.reviews.budget_report import BudgetReport, list_groups, report_budget, restart_budget
from signoff.work.services import Services

PAGE = 500
budgets = CommandGroup("Show, restart and compute error budgets.", panel="Jobs")
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the policy.")]
Group = Annotated[str | None, typer.Option(help="Group, of a budget with one for each; default: all of them.")]
MAX_DETECTED = 100_000


@budgets.register("table", "signoff budget table --audit-rate 0.1 --confidence 0.95 --max 5")
def budget_table(
    audit_rate: Annotated[float, typer.Option(help="Share of the answers that a person looks at, between 0 and 1.")],
    confidence: Annotated[float, typer.Option(help="Probability that the bound holds, between 0 and 1.")] = 0.95,
    max_: Annotated[int, typer.Option("--max", help="Largest number of wrong answers that audits find.")] = 20,
) -> None:
    """Print how many answers may be wrong if audits find 0, 1, 2 … wrong ones: a line `DETECTED BOUND` for each."""
    for option, value in (("audit-rate", audit_rate), ("confidence", confidence)):
        if not 0 < value < 1:
            stop(f"--{option} must be between 0 and 1, both excluded (got {value:g}).")
    if not 0 <= max_ <= MAX_DETECTED:
        stop(f"--max must be from 0 to {MAX_DETECTED} (got {max_}).")
    for detected in range(max_ + 1):
        out.print(f"{detected} {upper_bound(detected, audit_rate, confidence)}")


@budgets.register("show", "signoff budget show refunds", "signoff budget show refunds --group 12")
def show_budget(name: Name, group: Group = None) -> None:
    """Print the figures of the error budget of a policy, or a line for each of its groups."""
    _print(run(load(), lambda services: _figures(services, name, group)))


@budgets.register("restart", "signoff budget restart refunds", "signoff budget restart refunds --group 12")
def restart(name: Name, group: Group = None) -> None:
    """Start a new period of the error budget of a policy, or of one group of it, and print its figures."""

    async def figures(services: Services) -> BudgetReport | list[BudgetReport]:
        await restart_budget(services, OPERATOR, name, group)
        return await _figures(services, name, group)

    _print(run(load(), figures))


async def _figures(services: Services, name: str, group: str | None) -> BudgetReport | list[BudgetReport]:
    """Return the figures of a budget for all or of one group, or else those of all groups."""
    page = None if group is not None else await list_groups(services, OPERATOR, name, after=None, limit=PAGE)
    if page is None:
        return await report_budget(services, OPERATOR, name, group)
    every = list(page.data)
    while page is not None and page.next is not None:
        page = await list_groups(services, OPERATOR, name, after=page.next, limit=PAGE)
        every += [] if page is None else page.data
    return every


def _print(report: BudgetReport | list[BudgetReport]) -> None:
    """Print the figures, a line `NAME VALUE` for each; of groups a table."""
    if isinstance(report, list):
        table = table_of("group", "user", "gate", "passed", "allowed", "bound", "audits", "open audits", "wrong found")
        for each in report:
            numbers = (each.passed, each.allowed, each.bound, each.audits, each.audits_open, each.wrong_found)
            gate = "open" if each.open else "closed"
            table.add_row(each.group or "", each.user or "", gate, *map(str, numbers))
        print_table(table)
        return
    for name in report.__struct_fields__:
        value = getattr(report, name)
        out.print(f"{name} {'-' if value is None else value}", markup=False, highlight=False, soft_wrap=True)
