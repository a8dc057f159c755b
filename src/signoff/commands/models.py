"""`signoff model`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, cast

import msgspec
import typer
from rich.table import Table

from signoff.commands.terminal import out, rule_named, run, stop
from signoff.core.model import BALANCES, Balance, EndpointConfig, Model, ProcessLimits, model_fault
from signoff.core.policy import Review
from signoff.settings import load
from signoff.work.admin.models import end_process
from signoff.work.admin.registry import ModelKeys, all_models, model_by_name, register_model, unregister_model
from signoff.work.services import Services

models = typer.Typer(help="Models.")


Name = Annotated[str, typer.Argument(help="May end in *: everything with that prefix.")]
Urls = Annotated[
    list[str] | None,
    typer.Option(help="Base address of an OpenAI-compatible server; of http: what takes the JSON. Repeatable."),
]
Fallbacks = Annotated[
    list[str] | None, typer.Option(help="A model that is asked where this one does not answer. Repeatable.")
]
Serve = Annotated[bool, typer.Option("--serve", help="The program serves HTTP on its port; else it speaks JSON lines.")]

Kinds = Annotated[str, typer.Option(help="openai | http | subprocess | anyllm | echo, or one of an extension.")]
NoKey = Annotated[bool, typer.Option("--no-key", help="Forget its keys; else those that it had stay.")]


@models.command("add")
def model_add(
    name: Name,
    kind: Kinds,
    url: Urls = None,
    upstream_model: Annotated[str | None, typer.Option(help="What the upstream calls it.")] = None,
    command: Annotated[str | None, typer.Option(help="A program; {port} is the port that it is given.")] = None,
    memory_mb: Annotated[int | None, typer.Option(help="MiB of memory that its program may take.", min=8)] = None,
    open_files: Annotated[int | None, typer.Option(help="Files that it may have open.", min=16)] = None,
    nice: Annotated[int | None, typer.Option(help="0 to 19: how much it stands back for others.", min=0)] = None,
    review: Annotated[str | None, typer.Option(help="always | never; whatever the door says.")] = None,
    attempts: Annotated[int | None, typer.Option(help="How often it is asked at most.", min=1)] = None,
    cache: Annotated[str | None, typer.Option(help="always | never; else as each request says.")] = None,
    balance: Annotated[str, typer.Option(help=" | ".join(BALANCES))] = BALANCES[0],
    replicas: Annotated[int, typer.Option(help="How many processes of a program.")] = 1,
    max_parallel: Annotated[int | None, typer.Option(help="Requests at once, at each address.")] = None,
    max_waiting: Annotated[int, typer.Option(help="How many more wait for a turn.")] = 1000,
    queue_seconds: Annotated[float, typer.Option(help="For how long they do.")] = 60,
    fallback: Fallbacks = None,
    *,
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="Read the upstream's key.")] = False,
    no_key: NoKey = False,
    serve: Serve = False,
    default: Annotated[bool, typer.Option("--default", help="Answers when nobody names a model.")] = False,
) -> None:
    """Registers a model, or changes one; running servers know it at once."""
    _check_kind(kind)
    _check("review", review, (None, "always", "never"))
    _check("balance", balance, BALANCES)
    model = Model(
        name=name,
        kind=kind,
        upstream_model=upstream_model,
        command=_words(command or ""),
        serve=serve,
        limits=ProcessLimits(memory_mb=memory_mb, open_files=open_files, nice=nice),
        attempts=attempts,
        review=cast("Review | None", review),
        default=default,
        cache=rule_named(cache),
        balance=cast("Balance", balance),
        replicas=replicas,
        max_parallel=max_parallel,
        max_waiting=max_waiting,
        queue_seconds=queue_seconds,
        fallbacks=tuple(fallback or ()),
    )
    _register(_at(url or [], model), is_keyed=key_stdin, drops_key=no_key)


def _check_kind(kind: str) -> None:
    from signoff.server.bootstrap import model_kinds

    if kind not in model_kinds():
        stop(f"There is no kind {kind!r}; there are {', '.join(model_kinds())}.")


def _check(option: str, value: str | None, choices: Sequence[str | None]) -> None:
    if value not in choices:
        stop(f"There is no {option} {value!r}; there are {', '.join(choice for choice in choices if choice)}.")


def _at(urls: Sequence[str], model: Model) -> Model:
    if len(urls) > 1:
        return msgspec.structs.replace(model, endpoints=tuple(EndpointConfig(url=url) for url in urls))
    return msgspec.structs.replace(model, url=urls[0] if urls else None)


def _register(model: Model, *, is_keyed: bool, drops_key: bool) -> None:
    if (flaw := model_fault(model)) is not None:
        stop(flaw)
    if is_keyed and drops_key:
        stop("Either --key-stdin or --no-key.")
    secret = sys.stdin.readline().strip() if is_keyed else None
    if secret == "":
        stop("There was no key to read.")
    run(load(), lambda services: register_model(services, model, ModelKeys(secret), drops_key=drops_key))
    out.print(f"{model.name} is registered.")


@models.command("list")
def model_list() -> None:
    """Every model."""
    table = Table("name", "kind", "where", "review", "default")
    for model in run(load(), all_models):
        where = model.url or shlex.join(model.command) or "\n".join(each.url for each in model.endpoints)
        table.add_row(model.name, model.kind, where, model.review or "", "yes" if model.default else "")
    out.print(table)


@models.command("remove")
def model_remove(name: str) -> None:
    """Forgets a registered model."""
    run(load(), lambda services: unregister_model(services, name))
    out.print(f"{name} is forgotten.")


@models.command("stop")
def model_stop(name: str) -> None:
    """Ends a model's process on this host; the next request starts it again."""

    async def end(services: Services) -> None:
        await end_process(services, await model_by_name(services, name))

    run(load(), end)
    out.print(f"{name} is stopped.")


def _words(command: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        stop(f"--command cannot be read: {error}.")
