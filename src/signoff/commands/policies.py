"""`signoff policy`: named review policies, and dry runs of them."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import OPERATOR, out, print_table, run, stop, table_of
from signoff.core.decode import decode_json, without_mark
from signoff.core.reviews.accuracy import Estimate
from signoff.core.reviews.rules import PolicyDraft, ReviewPolicy
from signoff.core.wire import format_time
from signoff.settings import load
from signoff.work.reviews.dry_run import DryRun, dry_run
from signoff.work.reviews.library import get_policy, list_policies, remove_policy, save_policy
from signoff.work.reviews.past_answers import MAX_LAST
from signoff.work.reviews.recommend import CAUGHT_SHARE, recommend
from signoff.work.services import Services

PAGE = 500
policies = CommandGroup("Manage review policies.", panel="Configuration")
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the policy.")]
Version = Annotated[int | None, typer.Option(help="Version; default: the one that applies.", min=1)]
DraftFile = Annotated[str, typer.Argument(metavar="FILE", help="JSON file with the policy; `-` for stdin.")]
OptionalDraft = Annotated[str | None, typer.Argument(metavar="FILE", help="Draft to try; default: the policy itself.")]
Last = Annotated[int, typer.Option(help="Number of past answers to judge, from the newest on.", min=1)]


@policies.register("list", "signoff policy list")
def policy_list() -> None:
    """List the policies that apply."""
    table = table_of("name", "version", "target", "rules", "budget", "saved")
    for policy in run(load(), _all):
        budget = "" if policy.budget is None else f"{policy.budget.share:.4g} of {policy.budget.answers}"
        budget += "" if policy.budget is None or policy.budget.per is None else f" per {policy.budget.per}"
        rules = str(len(policy.rules))
        table.add_row(policy.name, str(policy.version), policy.target, rules, budget, format_time(policy.created_at))
    print_table(table)


async def _all(services: Services) -> list[ReviewPolicy]:
    every, after = list[ReviewPolicy](), ""
    while page := await list_policies(services, OPERATOR, after=after, limit=PAGE):
        every, after = [*every, *page], page[-1].name
    return every


@policies.register("show", "signoff policy show refunds", "signoff policy show refunds --version 3 > refunds.json")
def policy_show(name: Name, version: Version = None) -> None:
    """Print a policy as JSON, as `signoff policy put` reads it."""
    policy = run(load(), lambda services: get_policy(services, OPERATOR, name, version))
    members = {field: value for field, value in msgspec.to_builtins(policy).items() if field in _DRAFT}
    out.print(msgspec.json.format(msgspec.json.encode(members), indent=2).decode())


@policies.register("put", "signoff policy put refunds refunds.json")
def policy_put(name: Name, file: DraftFile) -> None:
    """Save a version of a policy; running servers apply it within a second."""
    draft = _read(file)
    saved = run(load(), lambda services: save_policy(services, OPERATOR, name, draft))
    out.print(f"{name} is saved as version {saved.version}, for {saved.target}.")


@policies.register(
    "dry-run", "signoff policy dry-run refunds --last 500", "signoff policy dry-run refunds refunds.json"
)
def policy_dry_run(name: Name, file: OptionalDraft = None, last: Last = 1000) -> None:
    """Print what a policy, or a draft of it, would have said about past answers: a line `NAME VALUE` for each figure.

    No model is asked.
    """
    draft = None if file is None else _read(file)
    result = run(load(), lambda services: dry_run(services, OPERATOR, name, last=last, draft=draft))
    by_key = {"rules": result.rules, "missing": result.missing}
    for field in DryRun.__struct_fields__:
        if field not in by_key:
            out.print(f"{field} {getattr(result, field)}")
        for key, number in by_key.get(field, {}).items():
            out.print(f"{field} {key} {number}")


@policies.register(
    "recommend", "signoff policy recommend refunds", "signoff policy recommend refunds --draft > refunds.json"
)
def policy_recommend(
    name: Name,
    *,
    last: Annotated[int, typer.Option(help="Number of past answers to look at, from the newest on.")] = MAX_LAST,
    caught: Annotated[float, typer.Option(help="Share of the wrong answers that the rule is to catch.")] = CAUGHT_SHARE,
    draft: Annotated[bool, typer.Option("--draft", help="Print the policy with the rule, as JSON.")] = False,
) -> None:
    """Recommend a rule that holds answers like those that people found wrong. Nothing is saved."""
    result = run(load(), lambda services: recommend(services, OPERATOR, name, last=last, caught=caught))
    if draft:
        members = msgspec.to_builtins(result.draft)
        out.print(msgspec.json.format(msgspec.json.encode(members), indent=2).decode(), markup=False, soft_wrap=True)
        return
    for field in ("answers", "reviewed", "wrong", "random"):
        out.print(f"{field} {getattr(result, field)}")
    accuracy = result.validation
    for field, estimate in (("error_share", result.error_share), ("auc", accuracy.auc), ("brier", accuracy.brier)):
        out.print(f"{field} {_interval(estimate)}")
    out.print(f"brier_of_share {accuracy.brier_of_share:.3f}")
    table = table_of("threshold", "held", "share held", "share of wrong ones caught")
    for row in result.thresholds:
        mark = " (draft)" if row.threshold == result.threshold else ""
        table.add_row(f"{row.threshold:g}{mark}", str(row.held), f"{row.held_share:.3f}", _interval(row.caught))
    print_table(table)
    for caution in result.cautions:
        out.print(caution, markup=False)


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.lowest:.3f} to {estimate.highest:.3f})"


@policies.register("delete", "signoff policy delete refunds")
def policy_delete(name: Name) -> None:
    """Delete a policy. Jobs that were submitted under it are judged by it still."""
    run(load(), lambda services: remove_policy(services, OPERATOR, name))
    out.print(f"{name} is deleted.")


_DRAFT = frozenset(PolicyDraft.__struct_fields__)


def _read(file: str) -> PolicyDraft:
    """Return the policy in a JSON file, or on stdin for `-`."""
    try:
        text = sys.stdin.read().encode() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        stop(f"FILE {file!r} cannot be read: {error.strerror}.")
    try:
        return decode_json(without_mark(text), PolicyDraft)
    except (ValueError, RecursionError) as error:
        stop(f"FILE {file!r} is not a valid policy: {error}.")
