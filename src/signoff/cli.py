"""The command line: serve and work; the other commands are in `commands/`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import Annotated, Any

import structlog
import typer

from signoff import __version__
from signoff.commands.cache import caches
from signoff.commands.data import keeping
from signoff.commands.jobs import looking
from signoff.commands.keys import sealing
from signoff.commands.limits import limits
from signoff.commands.models import models
from signoff.commands.people import tokens, users
from signoff.commands.prices import prices
from signoff.commands.terminal import OPERATOR, address_of, err, out, run, stop
from signoff.errors import SignoffError
from signoff.infra.logging import to_stderr
from signoff.infra.memory import resident_mb
from signoff.settings import BadSettings, Settings, load
from signoff.work.admin.people import create_token, create_user, sign_in_link
from signoff.work.pipelines.functions import sync_functions
from signoff.work.services import Services

FIRST_ADMIN = "admin@localhost"
DRAIN_SECONDS = 10
LOOK_SECONDS = 0.5
# In the environment of a worker that has started itself anew.
ANEW = "SIGNOFF_WORKS_ANEW"
SERVED: dict[str, Any] = {
    "loop": "uvloop",
    "http": "httptools",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "date_header": False,
    "timeout_graceful_shutdown": DRAIN_SECONDS,
}
log = structlog.get_logger()

cli = typer.Typer(help="One server in front of every AI model.", no_args_is_help=True, add_completion=False)
cli.add_typer(keeping)
cli.add_typer(looking)
cli.add_typer(users, name="user")
cli.add_typer(tokens, name="token")
cli.add_typer(models, name="model")
cli.add_typer(prices, name="price")
cli.add_typer(caches, name="cache")
cli.add_typer(limits, name="limit")
cli.add_typer(sealing, name="key")


def _print_version(is_given: bool) -> None:  # noqa: FBT001 -- Typer calls it with the option's value
    if is_given:
        out.print(__version__)
        raise typer.Exit


@cli.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Accept the options that come before a command."""


def main() -> None:
    """Runs one command; an expected error is one line, and exit code 1."""
    to_stderr()
    try:
        cli()
    except (SignoffError, BadSettings, OSError) as error:
        stop(str(error))


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on; 0: any that is free.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    *,
    no_work: Annotated[bool, typer.Option("--no-work", help="Serve only; leave the jobs to `signoff work`.")] = False,
) -> None:
    """The API, the pages, and a worker in the same process."""
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    settings = load(host=host, port=port)
    listening = _bound(settings)  # first: the token of the first start is told once
    address = address_of(settings.host, listening.getsockname()[1])
    out.print(run(settings, lambda services: _welcome(services, address)))
    os.environ["SIGNOFF_NO_WORK"] = "1" if no_work else "0"
    os.environ["SIGNOFF_HOST"] = settings.host  # who serves must know how far it can be reached
    config = uvicorn.Config("signoff.asgi:app", workers=workers, **SERVED)
    if workers > 1:
        Multiprocess(config, [listening]).run()
        return
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listening])
    if not server.started:
        raise typer.Exit(1)


@cli.command()
def work(concurrency: Annotated[int | None, typer.Option(help="Jobs at a time.", min=1)] = None) -> None:
    """A worker alone, until SIGTERM or Ctrl-C; then it finishes what it can and gives the rest back."""
    settings = load(concurrency=concurrency)
    if asyncio.run(_work(settings)):
        os.environ[ANEW] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 -- the same program again


async def _work(settings: Settings) -> bool:
    """Works until it is told to stop, or has taken too much memory; whether it is to start anew."""
    from signoff.server.bootstrap import run_services

    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with run_services(settings, work=True):
        most_mb, at_start_mb = settings.worker_memory_mb, resident_mb()
        refused = most_mb is not None and at_start_mb > most_mb
        if refused and os.environ.get(ANEW):  # it has worked within its bound: it does not vanish now
            err.print(
                f"This worker takes {at_start_mb} MiB from its start; it works on without a bound.", style="yellow"
            )
            most_mb, refused = None, False
        if not refused:
            err.print(f"Working, {settings.concurrency} jobs at a time.")
            await _told_or_outgrown(told, most_mb)
    if refused:
        raise BadSettings(f"worker_memory_mb is {most_mb}, but a worker takes {at_start_mb} MiB from its start.")
    return not told.is_set()


async def _told_or_outgrown(told: asyncio.Event, most_mb: int | None) -> None:
    """Returns when the worker is told to stop, or takes more memory than that."""
    while not told.is_set():
        if most_mb is not None and (now_mb := resident_mb()) > most_mb:
            err.print(f"This worker takes {now_mb} MiB of {most_mb}: it ends its jobs and starts anew.", style="yellow")
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await told.wait()


def _bound(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        stop(f"Cannot listen on {settings.host}: {error.strerror}.")


async def _register_functions(services: Services) -> None:
    """The builtins and the operator's own. A file that cannot be read keeps no server from its start."""
    try:
        await sync_functions(services, OPERATOR)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it can be mended, and synced, while the server runs
        log.warning("no functions are registered; POST /api/functions/sync does it", error=str(error))


async def _welcome(services: Services, address: str) -> str:
    """What a starting server says; the first time, with the first admin's token, and with the builtin functions."""
    known = await services.store.people.users()
    if not known:  # before anybody is known: a start that was cut off is the first one again
        await _register_functions(services)
    admins = [user for user in known if user.role == "admin"]
    admin = admins[0] if admins else await create_user(services, FIRST_ADMIN, "admin")
    link = await sign_in_link(services, admin)
    token = await create_token(services, admin, name="first") if not known else None
    shown = token or "$TOKEN"
    chat = '{"messages": [{"role": "user", "content": "Say hello."}]}'
    return f"""
Signoff is at {address}

Sign in (once, as {admin.email}): {address}{link}
Token: {token or "made at the first start; another one: .venv/bin/signoff token create YOU@EXAMPLE.COM --role user"}

curl {address}/v1/chat/completions -H "Authorization: Bearer {shown}" -d '{chat}'
curl {address}/enqueue -H "Authorization: Bearer {shown}" -d '{{"input": "What is 2 + 2?"}}'
"""
