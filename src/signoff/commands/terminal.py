"""Parts that all commands share: access to the services, output to the terminal, and errors of one line."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from signoff.core.access import Caller
from signoff.core.audit import Actor
from signoff.core.choices import choice_of
from signoff.core.printable import printable
from signoff.infra.actor import act_as
from signoff.settings import Settings
from signoff.work.services import Services

T = TypeVar("T")
C = TypeVar("C", bound=str)
ALWAYS_OR_NEVER: tuple[Literal["always", "never"], ...] = ("always", "never")
OPERATOR = Caller(user_id=0, token_id=0, role="admin", email="operator")
# Maximum number of characters of a line of a table in a file or a pipe.
MAX_WIDTH = 1000


class Terminal(Console):
    """Console that prints texts of models and users as they are, except for characters that would control it."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a line, or the text of a cell, to be printed."""
        return super().render_str(printable(text), **options)


out = Terminal(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Terminal(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=True)


def run(
    settings: Settings, function: Callable[[Services], Awaitable[T]], *, checks_key: bool = True, waits: bool = False
) -> T:
    """Return the result of `function`, called with services that are open meanwhile; the operator is the actor.

    Wait for a database server that cannot be reached if `waits`.
    Raises WrongKey if `checks_key` and this host has not the key of the stored secrets.
    """
    from signoff.server.bootstrap import open_services

    async def with_services() -> T:
        act_as(Actor(name=OPERATOR.email))
        async with open_services(settings, checks_key=checks_key, waits=waits) as services:
            return await function(services)

    return asyncio.run(with_services())


def address_of(host: str, port: int) -> str:
    """Return the URL at which this machine reaches a server that listens on `host` and `port`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- printed, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def choice(option: str, text: str | None, choices: Sequence[C]) -> C | None:
    """Return the value of an option, which is one of `choices` in any case, or None; stop the command if it is not."""
    if text is None:
        return None
    if (value := choice_of(text, choices)) is not None:
        return value
    return stop(f"--{option} must be one of {', '.join(choices)} (got {text!r}).")


def table_of(*heads: str, caption: str | None = None) -> Table:
    """Return a table whose texts are wrapped, and never cut, where they are too long."""
    table = Table(caption=caption)
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Print a table; in a file or a pipe, as wide as it needs to be."""
    (out if out.is_terminal else Terminal(width=MAX_WIDTH, markup=False, emoji=False)).print(table)


def read_line() -> str:
    """Return the next line of stdin, without its line break and without a byte order mark."""
    return sys.stdin.readline().removeprefix("\ufeff").rstrip("\n")


def create_private_file(path: Path) -> int:
    """Return the descriptor of a new file that only its owner may read; stop the command if `path` exists."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        stop(f"{path} exists already and is not overwritten; choose another file name.")


def stop(message: str) -> NoReturn:
    """Print `message` to stderr as one line, and exit with code 1."""
    err.print(message, style="red")
    raise SystemExit(1)
