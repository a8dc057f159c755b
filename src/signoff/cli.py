"""The command line: serve and work; the other commands are in `commands/`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import Annotated, Any

import typer

from signoff.commands.data import keeping
from signoff.commands.jobs import looking
from signoff.commands.models import models
from signoff.commands.people import tokens, users
from signoff.commands.terminal import address_of, err, out, run, stop
from signoff.errors import SignoffError
from signoff.logs import to_stderr
from signoff.settings import BadSettings, Settings, load
from signoff.work.desk import Desk
from signoff.work.people import create_token, create_user, sign_in_link

FIRST_ADMIN = "admin@localhost"
DRAIN_SECONDS = 10
SERVED: dict[str, Any] = {
    "loop": "uvloop",
    "http": "httptools",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "date_header": False,
    "timeout_graceful_shutdown": DRAIN_SECONDS,
}

cli = typer.Typer(help="One server in front of every AI model.", no_args_is_help=True, add_completion=False)
cli.add_typer(keeping)
cli.add_typer(looking)
cli.add_typer(users, name="user")
cli.add_typer(tokens, name="token")
cli.add_typer(models, name="model")


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
    out.print(run(settings, lambda desk: _welcome(desk, address)))
    os.environ["SIGNOFF_NO_WORK"] = "1" if no_work else "0"
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
    from signoff.app import running

    settings = load(concurrency=concurrency)

    async def until_stopped() -> None:
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        async with running(settings, work=True):
            err.print(f"Working, {settings.concurrency} jobs at a time.")
            await told.wait()

    asyncio.run(until_stopped())


def _bound(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        stop(f"Cannot listen on {settings.host}: {error.strerror}.")


async def _welcome(desk: Desk, address: str) -> str:
    """What a starting server says; the first time, with the first admin's token."""
    known = await desk.store.people.users()
    admins = [user for user in known if user.role == "admin"]
    admin = admins[0] if admins else await create_user(desk, FIRST_ADMIN, "admin")
    link = await sign_in_link(desk, admin)
    token = await create_token(desk, admin, name="first") if not known else None
    shown = token or "$TOKEN"
    chat = '{"messages": [{"role": "user", "content": "Say hello."}]}'
    return f"""
Signoff is at {address}

Sign in (once, as {admin.email}): {address}{link}
Token: {token or "made at the first start; another one: .venv/bin/signoff token create YOU@EXAMPLE.COM --role user"}

curl {address}/v1/chat/completions -H "Authorization: Bearer {shown}" -d '{chat}'
curl {address}/enqueue -H "Authorization: Bearer {shown}" -d '{{"input": "What is 2 + 2?"}}'
"""
