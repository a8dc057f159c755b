"""`signoff migrate`, `doctor`, `backup` and `restore`: looking after the data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from signoff.commands.terminal import err, out
from signoff.settings import load

keeping = typer.Typer()


@keeping.command()
def migrate() -> None:
    """Brings the database's schema up to date."""
    from signoff.server.bootstrap import migrate

    asyncio.run(migrate(load()))
    out.print("The schema is up to date.")


@keeping.command()
def doctor() -> None:
    """Looks whether everything that the server needs is there."""
    from signoff.commands.doctor import checks

    table, healthy = Table("", "what", "found"), True
    for check in asyncio.run(checks(load())):
        healthy = healthy and check.is_ok
        table.add_row("ok" if check.is_ok else "BAD", check.name, check.detail)
    out.print(table)
    if not healthy:
        raise typer.Exit(1)


@keeping.command()
def backup(
    file: Annotated[Path, typer.Argument(help="A new file.")],
    *,
    with_key: Annotated[bool, typer.Option("--with-key", help="Put the key that opens sealed secrets in too.")] = False,
) -> None:
    """Writes everything into one file, while servers go on working."""
    from signoff.commands.backup import backup

    settings = load()
    manifest = asyncio.run(backup(settings, file, with_key=with_key))
    out.print(f"{file} was written, read again, and is whole ({_counted(manifest.rows)}).")
    if with_key:
        out.print("The key is in it: whoever has this file can open every sealed secret.")
    else:
        out.print(
            f"The key is not in it (--with-key): keep {settings.key_path} too, or no sealed secret can be opened."
        )


@keeping.command()
def restore(file: Annotated[Path, typer.Argument(help="What `signoff backup` has written.")]) -> None:
    """Fills an empty database from a backup, whichever database it was made of."""
    from signoff.commands.backup import restore

    settings = load()
    done = asyncio.run(restore(settings, file))
    out.print(f"Restored all as it was at {done.manifest.made_at} ({_counted(done.manifest.rows)}).")
    if not done.had_key:
        out.print(f"The key was not in it: {settings.key_path} must be the one from where the backup was made.")
    if done.locked_models:
        locked = ", ".join(done.locked_models)
        err.print(f"{settings.key_path} does not open the upstream keys of {locked}.", style="red")


def _counted(rows: Callable[[str], int]) -> str:
    return f"users: {rows('users')}, models: {rows('models')}, jobs: {rows('jobs')}"
