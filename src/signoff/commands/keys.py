"""`signoff key`: rotation of the encryption key of all stored secrets."""

from collections.abc import Mapping
from typing import Annotated

import typer

from signoff.catalog import SealedKind
from signoff.commands.help import CommandGroup
from signoff.commands.terminal import err, out, run, stop
from signoff.infra.vault import add_new_key, drop_old_keys, keys_locked, put_new_key_first
from signoff.settings import Settings, load
from signoff.work.admin.rotation import RotationResult, count_old_secrets, rotate_secrets
from signoff.work.services import Services

# Secrets that were sealed with an old key while the key changed are in the database long before this time has passed.
MIN_KEY_AGE_SECONDS = 3600

encryption_keys = CommandGroup("Rotate the encryption key of the stored secrets.", panel="Data")


@encryption_keys.register("add", "signoff key add")
def key_add() -> None:
    """Add a key that decrypts but does not encrypt yet, so that all hosts can get the key file first."""
    settings = _settings_with_file()
    with keys_locked(settings.key_path):
        add_new_key(settings.key_path)
    out.print(f"Added a key to {settings.key_path}. Copy the file to every host, then run: signoff key rotate --added")


@encryption_keys.register("rotate", "signoff key rotate")
def key_rotate(*, added: Annotated[bool, typer.Option("--added", help="Use the key of `key add`.")] = False) -> None:
    """Encrypt all stored secrets with a new key, while servers run; the old key still decrypts."""
    settings = _settings_with_file()
    with keys_locked(settings.key_path):
        put_new_key_first(settings.key_path, added=added)
        _print_result(run(settings, rotate_secrets))
    out.print("The old key is still needed for secrets that are being stored. In an hour, run: signoff key drop")


@encryption_keys.register("drop", "signoff key drop")
def key_drop(
    *,
    at_once: Annotated[bool, typer.Option("--at-once", help="Do not wait an hour; only if no server runs.")] = False,
    lost: Annotated[bool, typer.Option("--lost", help="Go on if no key decrypts some secrets.")] = False,
) -> None:
    """Delete old keys, after all stored secrets were encrypted with the newest one."""
    settings = _settings_with_file()

    async def reseal_if_old(services: Services) -> RotationResult:
        age_seconds = services.clock() / 1_000_000 - settings.key_path.stat().st_mtime
        if age_seconds < MIN_KEY_AGE_SECONDS and not at_once:
            stop("The keys changed less than an hour ago; wait, or use --at-once if no server runs.")
        result = await rotate_secrets(services)
        await _check_secrets(services, settings, lost=lost)
        newest = services.adapters.vault.fingerprints[0]
        await services.store.secrets.add_key_fingerprint(newest, drops_others=True)
        return result

    with keys_locked(settings.key_path):
        _print_result(run(settings, reseal_if_old))
        out.print(f"Deleted old keys: {drop_old_keys(settings.key_path)}.")


@encryption_keys.register("accept", "signoff key accept")
def key_accept() -> None:
    """Use the key of this host although it is not the one of the stored secrets, for when that one is lost."""
    _print_result(run(load(), rotate_secrets, checks_key=False))
    out.print("Servers with this key start again. Enter the secrets that it does not decrypt once more.")


async def _check_secrets(services: Services, settings: Settings, *, lost: bool) -> None:
    """Stop the command if an old key is still needed, or may be: also by secrets whose key another host may have."""
    old, unreadable = await count_old_secrets(services)
    if old:
        stop(
            f"Some secrets are encrypted with an old key ({_numbers(old)}). Copy {settings.key_path} to all hosts, and "
            "run the command again."
        )
    if unreadable and not lost:
        stop(
            f"No key decrypts some secrets ({_numbers(unreadable)}). Append their key to {settings.key_path}, or enter "
            "the secrets again, and repeat the command. If their key is lost, use --lost."
        )


def _numbers(counts: Mapping[SealedKind, int]) -> str:
    return ", ".join(f"{kind}: {number}" for kind, number in counts.items())


def _settings_with_file() -> Settings:
    settings = load()
    if settings.secret_key is not None:
        stop("The keys are in the setting `secret_key`; change them there, and restart all servers.")
    return settings


def _print_result(result: RotationResult) -> None:
    out.print(f"Secrets encrypted with the new key: {result.count}.")
    if result.unreadable:
        err.print(f"Secrets that no key decrypts, which were not changed: {result.unreadable}.", style="red")
