"""The command line: `signoff serve` and `signoff work`; the other commands are in `commands/`.

Each part is imported when one of its commands runs, because imports are most of the time that a command takes.
"""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Generator
from typing import Annotated

import structlog
import typer

from signoff import __version__
from signoff.commands.help import CommandGroup
from signoff.commands.terminal import address_of, err, out, run, stop
from signoff.core.model import Model
from signoff.engines.llama import is_installed
from signoff.errors import Overloaded, SchemaOutdated, SignoffError
from signoff.infra.logging import log_to_stderr
from signoff.infra.memory import collect_seldom, resident_mb, return_large_blocks
from signoff.infra.program import program_command
from signoff.setting_sources import BadSettings
from signoff.settings import Settings, load
from signoff.work.admin.audit import record_settings
from signoff.work.admin.people import create_token, create_user, sign_in_link
from signoff.work.admin.registry import default_model
from signoff.work.services import Services

FIRST_ADMIN = "admin@localhost"
POLL_SECONDS, SCHEMA_POLL_SECONDS = 0.5, 5.0
# Environment variable of a worker that has restarted itself because of its memory.
RESTARTED = "SIGNOFF_WORKER_RESTARTED"
NO_MODEL = """
There is no model yet but `echo`, which answers with its input. To get one, do one of these:
  a small model on this machine (90 MB), after a restart: {pull}
  a hosted model, or a server of yours: {program} model add NAME --kind openai --url URL --key-stdin --default
"""
log = structlog.get_logger()

cli = CommandGroup("One server in front of every AI model.")
servers = CommandGroup(panel="Servers")


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
    """Run one command; an expected error is printed as one line, with exit code 1."""
    log_to_stderr()
    cli.add_needed(sys.argv[1:])
    try:
        cli()
    except (SignoffError, BadSettings, OSError) as error:
        stop(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@servers.register("serve", "signoff serve --port 8001", "signoff serve --host 0.0.0.0 --workers 4 --no-work")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for any free port.")] = None,
    workers: Annotated[int, typer.Option(help="Number of processes.", min=1)] = 1,
    *,
    no_work: Annotated[bool, typer.Option("--no-work", help="Leave jobs to `signoff work`.")] = False,
) -> None:
    """Serve the APIs and the pages, and perform jobs in the same process."""
    import uvicorn

    from signoff.server.serving import DrainingServer, allow_connections, serve_in_processes, uvicorn_options

    settings = load(host=host, port=port)
    # Bind before `_start`: it creates the first token, which would be lost if the port were in use. Listen after it: a
    # proxy sends to another server what is refused, and would lose what was accepted if the start failed.
    server_socket = _bind(settings)
    address = address_of(settings.host, server_socket.getsockname()[1])
    # Until the server handles signals: the first process of a container is not ended by one that it does not handle.
    default = signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    welcome = run(settings, lambda services: _start(services, settings, address), waits=True)
    signal.signal(signal.SIGTERM, default)
    os.environ["SIGNOFF_NO_WORK"] = "1" if no_work else "0"
    os.environ["SIGNOFF_HOST"] = settings.host  # the serving processes check if it is a loopback address
    options = uvicorn_options(allow_connections(settings.max_connections), settings.drain_seconds)
    options |= {"proxy_headers": "FORWARDED_ALLOW_IPS" in os.environ}
    config = uvicorn.Config("signoff.asgi:served", workers=workers, **options)
    if workers > 1:
        server_socket.listen()
        serve_in_processes(config, server_socket, lambda: out.print(welcome))
        return
    server = DrainingServer(config, lambda: out.print(welcome))
    with contextlib.suppress(KeyboardInterrupt):
        server.run([server_socket])
    if not server.started:
        raise typer.Exit(1)


@servers.register("work", "signoff work --concurrency 32")
def work(
    concurrency: Annotated[int | None, typer.Option(help="Maximum jobs at a time.", min=1)] = None,
) -> None:
    """Perform jobs until SIGTERM or Ctrl-C; then finish what ends in time, and release all other jobs."""
    import uvloop

    settings = load(concurrency=concurrency)
    if uvloop.run(_work(settings)):
        os.environ[RESTARTED] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 -- runs this program again


async def _work(settings: Settings) -> bool:
    """Perform jobs until a signal comes or memory exceeds its limit; return True if the worker must restart."""
    from signoff.server.bootstrap import run_services
    from signoff.server.start_warnings import log_warnings
    from signoff.work.pipelines.functions import register_missing_builtins

    stop_requested, schema_fault = asyncio.Event(), None
    async with contextlib.AsyncExitStack() as stack:
        with _ended_by_signals(stop_requested):
            services = await stack.enter_async_context(run_services(settings, work=True))
        if stop_requested.is_set():
            return False
        await record_settings(services, "work", settings.public_values())
        await register_missing_builtins(services)
        await log_warnings(services, settings)
        collect_seldom()
        return_large_blocks()
        limit_mb, start_mb = settings.worker_memory_mb, resident_mb()
        is_too_low = limit_mb is not None and start_mb > limit_mb
        if is_too_low and os.environ.get(RESTARTED):  # a worker that has run before must not disappear
            err.print(f"This worker uses {start_mb} MiB at its start; it ignores the memory limit.", style="yellow")
            limit_mb, is_too_low = None, False
        if not is_too_low:
            err.print(f"Working, {settings.concurrency} jobs at a time.")
            schema_fault = await _wait_for_stop(services, stop_requested, limit_mb)
    if schema_fault is not None:
        raise schema_fault
    if is_too_low:
        raise BadSettings(f"worker_memory_mb must be higher than {start_mb}, which a worker uses at its start.")
    return not stop_requested.is_set()


@contextlib.contextmanager
def _ended_by_signals(stop_requested: asyncio.Event) -> Generator[None]:
    """Set `stop_requested` at SIGTERM and SIGINT; until the block has ended, cancel it as well.

    A second SIGINT ends the process at once.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    is_starting = True

    def on_signal(number: signal.Signals) -> None:
        if stop_requested.is_set() and number == signal.SIGINT:
            os._exit(128 + number)
        if is_starting and task is not None and not stop_requested.is_set():
            task.cancel()
        stop_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    except asyncio.CancelledError:
        if not stop_requested.is_set():
            raise
    finally:
        is_starting = False


async def _wait_for_stop(
    services: Services, stop_requested: asyncio.Event, limit_mb: int | None
) -> SchemaOutdated | None:
    """Return when the worker must stop, or uses more than `limit_mb` of memory.

    Also return if the schema does not fit this version any more, with the error that says so, because a worker has no
    readiness probe that would show it.
    """
    clock = asyncio.get_running_loop().time
    check_at = clock() + SCHEMA_POLL_SECONDS
    while not stop_requested.is_set():
        if limit_mb is not None and (now_mb := resident_mb()) > limit_mb:
            err.print(f"The worker uses {now_mb} of {limit_mb} MiB; it finishes its jobs and restarts.", style="yellow")
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await stop_requested.wait()
        if clock() > check_at:
            check_at = clock() + SCHEMA_POLL_SECONDS
            if (schema_fault := await _schema_fault(services)) is not None:
                return schema_fault
    return None


async def _schema_fault(services: Services) -> SchemaOutdated | None:
    try:
        async with asyncio.timeout(POLL_SECONDS):
            await services.store.check_schema()
    except SchemaOutdated as error:
        return error
    except (Overloaded, TimeoutError):  # the database does not answer now
        return None
    return None


def _bind(settings: Settings) -> socket.socket:
    """Return a socket that is bound to the address of the settings, and does not listen yet."""
    server_socket = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if server_socket.family == socket.AF_INET6:
        server_socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        server_socket.bind((settings.host, settings.port))
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        match error.errno:
            case errno.EADDRINUSE:
                stop(f"{address} is in use. Is Signoff running already? Another port: --port {settings.port + 1}")
            case errno.EACCES:
                stop(f"{address} is not permitted to this user. Use a port from 1024 on: --port 8000")
            case errno.EADDRNOTAVAIL:
                stop(f"{settings.host} is no address of this machine. For all of its addresses: --host 0.0.0.0")
            case _:
                stop(f"Cannot listen on {address}: {error.strerror}.")
    return server_socket


async def _start(services: Services, settings: Settings, address: str) -> str:
    """Record the settings in the audit log, and return the text that a starting server prints."""
    await record_settings(services, "serve", settings.public_values())
    return await _welcome(services, address, is_terminal=sys.stdout.isatty())


async def _welcome(services: Services, address: str, *, is_terminal: bool) -> str:
    """Return the text that a starting server prints; the first start creates an admin with a token.

    A sign-in link is only for a terminal: elsewhere, the output is a log that others may read.
    """
    users = await services.store.people.users()
    admins = [user for user in users if user.role == "admin" and user.active]
    admin = admins[0] if admins else await create_user(services, FIRST_ADMIN, "admin")
    program = program_command()
    link = f"run {program} user link {admin.email}"
    if is_terminal and admin.active:
        link = address + await sign_in_link(services, admin)
    token = await create_token(services, admin, name="first") if not users else None
    shell_token, default = token or "$TOKEN", await default_model(services)
    options = _example_options(default)
    chat = json.dumps({"messages": [{"role": "user", "content": "Say hello."}]} | options)
    question = json.dumps({"input": "What is 2 + 2?"} | options)
    return f"""
Signoff is at {address}

Sign in (once, as {admin.email}): {link}
Token: {token or f"printed at the first start; for another: {program} token create YOU@EXAMPLE.COM --role user"}
{"" if default else NO_MODEL.format(pull=_pull(), program=program)}
curl {address}/v1/chat/completions -H "Authorization: Bearer {shell_token}" -d '{chat}'
curl {address}/enqueue -H "Authorization: Bearer {shell_token}" -d '{question}'
"""


def _pull() -> str:
    """Return the command that gets the small model, and what it needs."""
    return f"{program_command()} model pull" + ("" if is_installed() else " (needs the extra `local` of this package)")


def _example_options(default: Model | None) -> dict[str, object]:
    """Return the members of an example request with which the default model answers well; name one if there is none."""
    if default is None:
        return {"model": "echo"}
    return {"temperature": 0, "max_tokens": 40} if default.name == "local" else {}


# In the order of the help.
cli.add_later("signoff.cli:servers", "serve", "work")
cli.add_later("signoff.commands.init:init_commands", "init")
cli.add_later("signoff.commands.jobs:job_commands", "jobs")
cli.add_later("signoff.commands.batches:batch_commands", "batch")
cli.add_later("signoff.commands.reviews:review_commands", "review")
cli.add_later("signoff.commands.receipts:report_commands", "verify", "review-figures")
cli.add_later("signoff.commands.receipts:feedback_commands", name="feedback")
cli.add_later("signoff.commands.receipts:receipt_commands", name="receipts")
cli.add_later("signoff.commands.budget:budgets", name="budget")
cli.add_later("signoff.commands.policies:policies", name="policy")
cli.add_later("signoff.commands.data:maintenance", "migrate", "doctor", "backup", "restore")
cli.add_later("signoff.commands.audit:audit_commands", "audit")
cli.add_later("signoff.commands.cache:caches", name="cache")
cli.add_later("signoff.commands.keys:encryption_keys", name="key")
cli.add_later("signoff.commands.people:users", name="user")
cli.add_later("signoff.commands.people:tokens", name="token")
cli.add_later("signoff.commands.people:sessions", name="session")
cli.add_later("signoff.commands.models:models", name="model")
cli.add_later("signoff.commands.prices:prices", name="price")
cli.add_later("signoff.commands.limits:limits", name="limit")
