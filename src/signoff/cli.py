"""The command line: serve, work, migrate, doctor, and looking after people, models and jobs."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NoReturn, TypeVar, cast

import structlog
import typer
import uvicorn
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from signoff import app as composition
from signoff.asgi import Application
from signoff.checks import checks
from signoff.core.access import ROLES, Caller, Role
from signoff.core.answer import text_of
from signoff.core.job import STATUSES, Job, Status, Verdict
from signoff.core.policy import Review
from signoff.core.target import KINDS, Model
from signoff.errors import SignoffError
from signoff.settings import BadSettings, Settings, load
from signoff.store import JobFilter
from signoff.work.desk import Desk
from signoff.work.look import look_at_all
from signoff.work.people import create_token, create_user, sign_in_link
from signoff.work.review import Opinion, decide

T = TypeVar("T")
FIRST_ADMIN = "admin@localhost"
DRAIN_SECONDS = 10
OPERATOR = Caller(user_id=0, token_id=0, role="admin", email="operator")

cli = typer.Typer(help="One server in front of every AI model.", no_args_is_help=True, add_completion=False)
users, tokens, models = typer.Typer(help="People."), typer.Typer(help="Tokens."), typer.Typer(help="Models.")
cli.add_typer(users, name="user")
cli.add_typer(tokens, name="token")
cli.add_typer(models, name="model")
out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    """Runs one command; an expected error is one line, and exit code 1."""
    _log_to_stderr()
    try:
        cli()
    except (SignoffError, BadSettings) as error:
        _stop(str(error))
    except ValidationError as error:
        _stop("\n".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors()))


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    *,
    no_work: Annotated[bool, typer.Option("--no-work", help="Serve only; leave the jobs to `signoff work`.")] = False,
) -> None:
    """The API, the pages, and a worker in the same process."""
    settings = load(host=host, port=port)
    welcome = _run(settings, lambda desk: _welcome(desk, settings))
    if workers > 1:
        os.environ["SIGNOFF_NO_WORK"] = "1" if no_work else "0"
        out.print(welcome)
        uvicorn.run("signoff.asgi:app", workers=workers, **_served(settings))
        return
    server = _Server(uvicorn.Config(Application(settings, work=not no_work), **_served(settings)), welcome)
    server.run()
    if not server.started:
        raise typer.Exit(1)


@cli.command()
def work(concurrency: Annotated[int | None, typer.Option(help="Jobs at a time.", min=1)] = None) -> None:
    """A worker alone, until SIGTERM or Ctrl-C; then it finishes what it can and gives the rest back."""
    settings = load(concurrency=concurrency)

    async def until_stopped() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with composition.running(settings, work=True):
            err.print(f"Working, {settings.concurrency} jobs at a time.")
            await stop.wait()

    asyncio.run(until_stopped())


@cli.command()
def migrate() -> None:
    """Brings the database's schema up to date."""
    settings = load()
    asyncio.run(composition.migrate(settings))
    out.print("The schema is up to date.")


@cli.command()
def doctor() -> None:
    """Looks whether everything that the server needs is there."""
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
    role: Annotated[str, typer.Option(help=" | ".join(ROLES))] = "user",
    *,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read a password.")] = False,
) -> None:
    """Makes a user, or changes one."""
    password = sys.stdin.readline().rstrip("\n") if password_stdin else None
    user = _run(load(), lambda desk: create_user(desk, email, _role(role), password))
    out.print(f"{user.email} is a {user.role}.")


@users.command("link")
def user_link(email: str) -> None:
    """Prints a link that signs a user in once, within a day."""
    settings = load()

    async def link(desk: Desk) -> str:
        user = await desk.store.people.user(email)
        return _stop(f"There is no user {email}.") if user is None else await sign_in_link(desk, user)

    out.print(_address(settings) + _run(settings, link))


@tokens.command("create")
def token_create(
    email: str,
    role: Annotated[str | None, typer.Option(help=" | ".join(ROLES))] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the token alone.")] = False,
) -> None:
    """Makes a token, and its user if there is none. It is shown this once."""
    wanted = None if role is None else _role(role)

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
    *,
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="Read the upstream's key.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="The program serves HTTP on its port.")] = False,
    default: Annotated[bool, typer.Option("--default", help="Answers when nobody names a model.")] = False,
) -> None:
    """Registers a model, or changes one; running servers know it at once."""
    if kind not in KINDS:
        _stop(f"There is no kind {kind!r}; there are {', '.join(KINDS)}.")
    if kind == "openai" and not url:
        _stop("An openai model needs --url.")
    if kind == "subprocess" and not (command and serve):
        _stop("A subprocess model needs --command and --serve.")
    if review not in {None, "always", "never"}:
        _stop("--review is always or never.")
    model = Model(
        name=name,
        kind=kind,
        url=url,
        upstream_model=upstream_model,
        command=tuple(shlex.split(command or "")),
        serve=serve,
        review=cast("Review | None", review),
        default=default,
    )
    secret = sys.stdin.readline().strip() if key_stdin else None
    _run(load(), lambda desk: composition.register(desk, model, secret))
    out.print(f"{name} is registered.")


@models.command("list")
def model_list() -> None:
    """Every model."""
    table = Table("name", "kind", "where", "review", "default")
    for model in _run(load(), lambda desk: desk.models.all()):
        where = model.url or shlex.join(model.command)
        table.add_row(model.name, model.kind, where, model.review or "", "yes" if model.default else "")
    out.print(table)


@models.command("remove")
def model_remove(name: str) -> None:
    """Forgets a registered model."""
    if not _run(load(), lambda desk: desk.store.catalog.drop_model(name)):
        _stop(f"There is no registered model {name}.")


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
        table.add_row(job.id, job.status, job.target, _answer(job)[:80])
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
        out.print(
            f"\n{job.id}  {job.target}\n  asked:    {job.body.decode(errors='replace')}\n  answered: {_answer(job)}"
        )
        if not await _review_one(desk, job):
            return
    out.print("Nothing (more) waits.")


async def _review_one(desk: Desk, job: Job) -> bool:
    """Asks for a verdict; False when the reviewer has had enough."""
    verdicts: dict[str, Verdict] = {"a": "approve", "r": "redo", "x": "reject"}
    choice = await asyncio.to_thread(typer.prompt, "a approve, r ask again, x reject, s skip, q quit", default="s")
    if choice in verdicts:
        reason = await asyncio.to_thread(typer.prompt, "Reason") if choice == "x" else None
        await decide(desk, OPERATOR, job.id, Opinion(verdict=verdicts[choice], reason=reason, round=job.round))
    return choice != "q"


def _answer(job: Job) -> str:
    if job.response is None:
        return job.error.message if job.error else ""
    return text_of(job.response) or job.response.decode(errors="replace")


class _Server(uvicorn.Server):
    """Says where it is once it is there."""

    def __init__(self, config: uvicorn.Config, welcome: str) -> None:
        super().__init__(config)
        self._welcome = welcome

    async def startup(self, sockets: Any = None) -> None:
        """Starts, then speaks."""
        await super().startup(sockets)
        if self.started:
            out.print(self._welcome)


def _served(settings: Settings) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "loop": "uvloop",
        "http": "httptools",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "timeout_graceful_shutdown": DRAIN_SECONDS,
    }


async def _welcome(desk: Desk, settings: Settings) -> str:
    """What a starting server says; the first time, with the first admin's token."""
    address = _address(settings)
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


def _address(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 -- shown, not bound
    return f"http://{host}:{settings.port}"


def _run(settings: Settings, function: Callable[[Desk], Awaitable[T]]) -> T:
    async def run() -> T:
        async with composition.opened(settings) as desk:
            return await function(desk)

    return asyncio.run(run())


def _role(text: str) -> Role:
    if text not in ROLES:
        _stop(f"There is no role {text!r}; there are {', '.join(ROLES)}.")
    return text


def _stop(message: str) -> NoReturn:
    err.print(message, style="red", markup=False)
    raise SystemExit(1)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
    )
