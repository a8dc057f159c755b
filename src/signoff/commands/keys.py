"""`signoff key`: changing the key that seals every stored secret."""

from __future__ import annotations

from typing import Annotated

import typer

from signoff.commands.terminal import err, out, run, stop
from signoff.infra.vault import add_new_key, drop_old_keys, keys_locked, put_new_key_first
from signoff.settings import load
from signoff.work.admin.rotation import RotationResult, reseal
from signoff.work.services import Services

# Whoever sealed something as the key changed has written it down long before.
SETTLED_SECONDS = 3600

sealing = typer.Typer(help="The key that seals stored secrets.")


@sealing.command("add")
def key_add() -> None:
    """Adds a new key that opens but does not seal yet: for hosts that get the file before it does."""
    settings = load()
    with keys_locked(settings.key_path):
        add_new_key(settings.key_path)
    out.print(f"{settings.key_path} has a new key. Copy the file to every host, then: signoff key rotate --added")


@sealing.command("rotate")
def key_rotate(
    *,
    added: Annotated[bool, typer.Option("--added", help="Take the key that was added, not a new one.")] = False,
) -> None:
    """A new key seals from now on, and everything is sealed anew with it; the old one still opens. Servers go on."""
    settings = load()
    with keys_locked(settings.key_path):
        put_new_key_first(settings.key_path, added=added)
        _tell(run(settings, reseal))
    out.print("The old key still opens what was on its way. In an hour: signoff key drop")


@sealing.command("drop")
def key_drop(
    *, at_once: Annotated[bool, typer.Option("--at-once", help="Do not wait for an hour: no server runs.")] = False
) -> None:
    """Forgets old keys, once everything is sealed with the newest."""
    settings = load()

    async def settled(services: Services) -> RotationResult:
        age_seconds = services.clock() / 1_000_000 - settings.key_path.stat().st_mtime
        if age_seconds < SETTLED_SECONDS and not at_once:
            stop("The keys have changed within the hour: what is on its way may need an old one (--at-once).")
        return await reseal(services)

    with keys_locked(settings.key_path):
        _tell(run(settings, settled))
        out.print(f"Old keys that were forgotten: {drop_old_keys(settings.key_path)}.")


def _tell(resealed: RotationResult) -> None:
    out.print(f"Secrets that were sealed anew: {resealed.count}.")
    if resealed.unreadable:
        err.print(f"No key opens {resealed.unreadable} of them; they were left alone.", style="red")
