"""`signoff budget`: figures of error budgets."""

from typing import Annotated

import typer

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import OPERATOR, out, run, stop
from signoff.core.reviews.error_budget import bound
from signoff.settings import load
from signoff.work.reviews.budget_report import BudgetReport, report_budget, restart_budget

budgets = CommandGroup("Show, restart and compute error budgets.", panel="Jobs")
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
            stop(f"--{option} must be between 0 and 1, without both (got {value:g}).")
    if not 0 <= max_ <= MAX_DETECTED:
        stop(f"--max must be from 0 to {MAX_DETECTED} (got {max_}).")
    for detected in range(max_ + 1):
        out.print(f"{detected} {bound(detected, audit_rate, confidence)}")


@budgets.register("show", "signoff budget show refunds")
def show_budget(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the policy.")]) -> None:
    """Print the figures of the error budget of a policy."""
    _print(run(load(), lambda services: report_budget(services, OPERATOR, name)))


@budgets.register("restart", "signoff budget restart refunds")
def restart(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the policy.")]) -> None:
    """Start a new period of the error budget of a policy, and print its figures."""
    _print(run(load(), lambda services: restart_budget(services, OPERATOR, name)))


def _print(report: BudgetReport) -> None:
    """Print the figures, a line `NAME VALUE` for each."""
    for name in report.__struct_fields__:
        value = getattr(report, name)
        out.print(f"{name} {'-' if value is None else value}", markup=False, highlight=False, soft_wrap=True)
