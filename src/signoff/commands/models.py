"""`signoff model`."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, cast

import typer
from rich.table import Table

from signoff.commands.terminal import out, run, stop
from signoff.core.policy import Review
from signoff.core.target import KINDS, Model, flaw_of
from signoff.settings import load
from signoff.work.models import all_models, forget, register

models = typer.Typer(help="Models.")


@models.command("add")
def model_add(
    name: Annotated[str, typer.Argument(help="May end in *: everything with that prefix.")],
    kind: Annotated[str, typer.Option(help=" | ".join(KINDS))],
    url: Annotated[
        str | None, typer.Option(help="Base address of an OpenAI-compatible server; of http: what takes the JSON.")
    ] = None,
    upstream_model: Annotated[str | None, typer.Option(help="What the upstream calls it.")] = None,
    command: Annotated[str | None, typer.Option(help="A program; {port} is the port that it is given.")] = None,
    review: Annotated[str | None, typer.Option(help="always | never; whatever the door says.")] = None,
    attempts: Annotated[int | None, typer.Option(help="How often it is asked at most.", min=1)] = None,
    *,
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="Read the upstream's key.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="The program serves HTTP on its port; else it speaks JSON lines.")
    ] = False,
    default: Annotated[bool, typer.Option("--default", help="Answers when nobody names a model.")] = False,
) -> None:
    """Registers a model, or changes one; running servers know it at once."""
    if kind not in KINDS:
        stop(f"There is no kind {kind!r}; there are {', '.join(KINDS)}.")
    if review not in {None, "always", "never"}:
        stop("--review is always or never.")
    model = Model(
        name=name,
        kind=kind,
        url=url,
        upstream_model=upstream_model,
        command=_words(command or ""),
        serve=serve,
        attempts=attempts,
        review=cast("Review | None", review),
        default=default,
    )
    if (flaw := flaw_of(model)) is not None:
        stop(flaw)
    secret = sys.stdin.readline().strip() if key_stdin else None
    if secret == "":
        stop("There was no key to read.")
    run(load(), lambda desk: register(desk, model, secret))
    out.print(f"{name} is registered.")


@models.command("list")
def model_list() -> None:
    """Every model."""
    table = Table("name", "kind", "where", "review", "default")
    for model in run(load(), all_models):
        where = model.url or shlex.join(model.command)
        table.add_row(model.name, model.kind, where, model.review or "", "yes" if model.default else "")
    out.print(table)


@models.command("remove")
def model_remove(name: str) -> None:
    """Forgets a registered model."""
    run(load(), lambda desk: forget(desk, name))
    out.print(f"{name} is forgotten.")


def _words(command: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        stop(f"--command cannot be read: {error}.")
