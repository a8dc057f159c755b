"""`signoff migrate`, `doctor`, `backup` and `restore`: maintenance of the data."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import err, out, print_table, table_of
from signoff.settings import load

maintenance = CommandGroup(panel="Data")


@maintenance.register("migrate", "signoff migrate", "signoff migrate --wait 120")
def migrate(
    wait: Annotated[float, typer.Option(help="Seconds to wait for a database server that does not answer.")] = 0,
) -> None:
    """Bring the schema of the database up to date."""
    from signoff.server.bootstrap import migrate

    asyncio.run(migrate(load(), wait_seconds=wait))
    out.print("The schema is up to date.")


@maintenance.register("doctor", "signoff doctor")
def doctor() -> None:
    """Check that everything the server needs is available."""
    from signoff.commands.doctor import run_checks

    table, healthy = table_of("", "check", "result"), True
    for check in asyncio.run(run_checks(load())):
        healthy = healthy and check.is_ok
        result = "warn" if check.is_warning else "ok"
        table.add_row(result if check.is_ok else "BAD", check.name, check.detail)
    print_table(table)
    if not healthy:
        raise typer.Exit(1)


@maintenance.register("backup", "signoff backup 2026-11-29.signoff")
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to create.")],
    *,
    with_key: Annotated[bool, typer.Option("--with-key", help="Include the key of the stored secrets.")] = False,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out files with lost contents.")] = False,
) -> None:
    """Write all data into one file, while servers run."""
    from signoff.commands.backup import backup
    from signoff.server.bootstrap import key_source

    settings = load()
    manifest = asyncio.run(backup(settings, file, with_key=with_key, skip_missing=skip_missing))
    out.print(f"{file} was written and verified ({_row_counts(manifest.rows)}).")
    if with_key:
        out.print("It contains the encryption key: anyone who has this file can read every stored secret.")
    else:
        out.print(f"It does not contain the encryption key (--with-key): back up {key_source(settings)} as well.")


@maintenance.register("restore", "signoff restore 2026-11-29.signoff")
def restore(file: Annotated[Path, typer.Argument(metavar="FILE", help="File that `signoff backup` wrote.")]) -> None:
    """Fill an empty database from a backup, which may be of another kind of database."""
    from signoff.commands.backup import restore
    from signoff.server.bootstrap import key_source

    settings = load()
    result = asyncio.run(restore(settings, file))
    out.print(f"The data of {result.manifest.made_at} was restored ({_row_counts(result.manifest.rows)}).")
    if not result.had_key:
        out.print(f"The backup has no encryption key: copy the one of the backed-up server to {key_source(settings)}.")
    if not result.is_key_in_use:
        text = "The setting `secret_key` lacks the key of the backup. Append it; it is in"
        out.print(f"{text} {settings.key_path}.")
    if result.locked_models:
        names = ", ".join(result.locked_models)
        err.print(f"The upstream keys of {names} cannot be decrypted with {key_source(settings)}.", style="red")


def _row_counts(rows: Callable[[str], int]) -> str:
    return f"users: {rows('users')}, models: {rows('models')}, jobs: {rows('jobs')}"
