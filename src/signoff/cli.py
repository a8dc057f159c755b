"""The command line: serve, work, migrate, doctor, and looking after people, models and jobs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NoReturn, TypeVar, cast

import typer
from rich.console import Console
from rich.table import Table

from signoff.core.access import ROLES, Caller, Role, User
from signoff.core.answer import text_of
from signoff.core.job import STATUSES, Job, Status, Verdict
from signoff.core.policy import Review
from signoff.core.target import KINDS, Model
from signoff.errors import SignoffError
from signoff.logs import to_stderr
from signoff.settings import BadSettings, Settings, load
from signoff.store import JobFilter
from signoff.work.desk import Desk
from signoff.work.look import look_at_all
from signoff.work.models import all_models, forget, register
from signoff.work.people import create_token, create_user, sign_in_link
from signoff.work.review import Opinion, decide

T = TypeVar("T")
FIRST_ADMIN = "admin@localhost"
DRAIN_SECONDS = 10
OPERATOR = Caller(user_id=0, token_id=0, role="admin", email="operator")
# Control characters but for tab and newline, and those that turn the direction of writing.
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
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
users, tokens, models = typer.Typer(help="People."), typer.Typer(help="Tokens."), typer.Typer(help="Models.")
cli.add_typer(users, name="user")
cli.add_typer(tokens, name="token")
cli.add_typer(models, name="model")
# What models say is shown as it is: no markup, no emoji.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=True)


def main() -> None:
    """Runs one command; an expected error is one line, and exit code 1."""
    to_stderr()
    try:
        cli()
    except (SignoffError, BadSettings, OSError) as error:
        _stop(str(error))


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
    address = _address(settings.host, listening.getsockname()[1])
    out.print(_run(settings, lambda desk: _welcome(desk, address)))
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
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with running(settings, work=True):
            err.print(f"Working, {settings.concurrency} jobs at a time.")
            await stop.wait()

    asyncio.run(until_stopped())


@cli.command()
def migrate() -> None:
    """Brings the database's schema up to date."""
    from signoff.app import migrate

    asyncio.run(migrate(load()))
    out.print("The schema is up to date.")


@cli.command()
def doctor() -> None:
    """Looks whether everything that the server needs is there."""
    from signoff.checks import checks

    table, healthy = Table("", "what", "found"), True
    for check in asyncio.run(checks(load())):
        healthy = healthy and check.fine
        table.add_row("ok" if check.fine else "BAD", check.what, check.found)
    out.print(table)
    if not healthy:
        raise typer.Exit(1)


@users.command("create")
def user_create(
    email: str,
    role: Annotated[str | None, typer.Option(help=" | ".join(ROLES))] = None,
    *,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read a password.")] = False,
) -> None:
    """Makes a user, or changes what is given of one."""
    wanted = _role(role)
    password = sys.stdin.readline().rstrip("\n") if password_stdin else None

    async def create(desk: Desk) -> User:
        known = await desk.store.people.user(email)
        return await create_user(desk, email, wanted or (known.role if known else "user"), password)

    user = _run(load(), create)
    out.print(f"{user.email} is a {user.role}.")


@users.command("link")
def user_link(email: str) -> None:
    """Prints a link that signs a user in once, within a day."""
    settings = load()

    async def link(desk: Desk) -> str:
        user = await desk.store.people.user(email)
        return _stop(f"There is no user {email}.") if user is None else await sign_in_link(desk, user)

    out.print(_address(settings.host, settings.port) + _run(settings, link))


@tokens.command("create")
def token_create(
    email: str,
    role: Annotated[str | None, typer.Option(help=" | ".join(ROLES))] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the token alone.")] = False,
) -> None:
    """Makes a token, and its user if there is none. It is shown this once."""
    wanted = _role(role)

    async def create(desk: Desk) -> str:
        user = await desk.store.people.user(email) or await create_user(desk, email, wanted or "user")
        return await create_token(desk, user, role=wanted, name=name)

    token = _run(load(), create)
    out.print(token if quiet else f"{token}\n\nIt is not shown again.")


@models.command("add")
def model_add(
    name: Annotated[str, typer.Argument(help="May end in *: everything with that prefix.")],
    kind: Annotated[str, typer.Option(help=" | ".join(KINDS))],
    url: Annotated[str | None, typer.Option(help="Base address of an OpenAI-compatible server.")] = None,
    upstream_model: Annotated[str | None, typer.Option(help="What the upstream calls it.")] = None,
    command: Annotated[str | None, typer.Option(help="A program; {port} is the port that it is given.")] = None,
    review: Annotated[str | None, typer.Option(help="always | never; whatever the door says.")] = None,
    attempts: Annotated[int | None, typer.Option(help="How often it is asked at most.", min=1)] = None,
    *,
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="Read the upstream's key.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="The program serves HTTP on its port.")] = False,
    default: Annotated[bool, typer.Option("--default", help="Answers when nobody names a model.")] = False,
) -> None:
    """Registers a model, or changes one; running servers know it at once."""
    if kind not in KINDS:
        _stop(f"There is no kind {kind!r}; there are {', '.join(KINDS)}.")
    if kind == "openai" and not (url or "").startswith(("http://", "https://")):
        _stop("An openai model needs --url http://… or https://…")
    if kind == "subprocess" and not (command and serve):
        _stop("A subprocess model needs --command and --serve.")
    if review not in {None, "always", "never"}:
        _stop("--review is always or never.")
    if default and name.endswith("*"):
        _stop("A default model needs a whole name.")
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
    secret = sys.stdin.readline().strip() if key_stdin else None
    if secret == "":
        _stop("There was no key to read.")
    _run(load(), lambda desk: register(desk, model, secret))
    out.print(f"{name} is registered.")


@models.command("list")
def model_list() -> None:
    """Every model."""
    table = Table("name", "kind", "where", "review", "default")
    for model in _run(load(), all_models):
        where = model.url or shlex.join(model.command)
        table.add_row(model.name, model.kind, where, model.review or "", "yes" if model.default else "")
    out.print(table)


@models.command("remove")
def model_remove(name: str) -> None:
    """Forgets a registered model."""
    _run(load(), lambda desk: forget(desk, name))
    out.print(f"{name} is forgotten.")


@cli.command()
def jobs(
    status: Annotated[str | None, typer.Option(help=" | ".join(STATUSES))] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=1000)] = 20,
) -> None:
    """The latest jobs."""
    if status not in {None, *STATUSES}:
        _stop(f"There is no status {status!r}; there are {', '.join(STATUSES)}.")
    which = JobFilter(status=cast("Status | None", status), limit=limit, newest_first=True)
    found, total = _run(load(), lambda desk: look_at_all(desk, OPERATOR, which))
    table = Table("id", "status", "model", "answer", caption=f"{total} in all")
    for job in found:
        table.add_row(job.id, job.status, _shown(job.target), _answer(job)[:80])
    out.print(table)


@cli.command()
def review() -> None:
    """Reviews held answers, one after another."""
    _run(load(), _review_all)


async def _review_all(desk: Desk) -> None:
    seen = ""
    while found := (await look_at_all(desk, OPERATOR, JobFilter(status="human", after_id=seen, limit=1)))[0]:
        job = found[0]
        seen = job.id
        asked = _shown(job.body.decode(errors="replace"))
        out.print(f"\n{job.id}  {_shown(job.target)}\n  asked:    {asked}\n  answered: {_answer(job)}")
        if not await _review_one(desk, job):
            return
    out.print("Nothing (more) waits.")


async def _review_one(desk: Desk, job: Job) -> bool:
    """Asks for a verdict; False when the reviewer has had enough."""
    verdicts: dict[str, Verdict] = {"a": "approve", "r": "redo", "x": "reject"}
    choice = await asyncio.to_thread(typer.prompt, "a approve, r ask again, x reject, s skip, q quit", default="s")
    if choice in verdicts:
        reason = await asyncio.to_thread(typer.prompt, "Reason") if choice == "x" else None
        opinion = Opinion(verdict=verdicts[choice], reason=reason, round=job.round)
        try:
            await decide(desk, OPERATOR, job.id, opinion)
        except SignoffError as error:  # somebody else was faster
            err.print(error.message, style="red")
    return choice != "q"


def _answer(job: Job) -> str:
    if job.response is None:
        return _shown(job.error.message) if job.error else ""
    return _shown(text_of(job.response) or job.response.decode(errors="replace"))


def _bound(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        _stop(f"Cannot listen on {settings.host}: {error.strerror}.")


def _address(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- shown, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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


def _run(settings: Settings, function: Callable[[Desk], Awaitable[T]]) -> T:
    from signoff.app import opened

    async def run() -> T:
        async with opened(settings) as desk:
            return await function(desk)

    return asyncio.run(run())


def _role(text: str | None) -> Role | None:
    if text is not None and text not in ROLES:
        _stop(f"There is no role {text!r}; there are {', '.join(ROLES)}.")
    return text


def _words(command: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        _stop(f"--command cannot be read: {error}.")


def _shown(text: str) -> str:
    """`text` without anything that would steer the terminal."""
    return STEERS.sub("�", text)


def _stop(message: str) -> NoReturn:
    err.print(message, style="red")
    raise SystemExit(1)
