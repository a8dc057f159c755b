"""Backup of all data into one file, and restore from such a file."""

from pathlib import Path

import msgspec

from signoff.infra.vault import add_keys
from signoff.server.bootstrap import open_services
from signoff.settings import Settings
from signoff.stores.archive import Manifest, check
from signoff.stores.sql import SqlStore
from signoff.work.admin.registry import locked_models


class RestoreResult(msgspec.Struct, frozen=True):
    """Result of a restore."""

    manifest: Manifest
    """Description of the backup: its time and its numbers of rows."""
    had_key: bool
    """True if the backup contained the encryption key."""
    locked_models: list[str]
    """Names of the models whose upstream keys the encryption key does not open."""


async def backup(settings: Settings, path: Path, *, with_key: bool) -> Manifest:
    """Write all data, as of one moment, into the new file `path`, while servers run.

    Raises BadBackup, SchemaOutdated.
    """
    key = settings.key_path.read_bytes() if with_key else None
    store = SqlStore(settings.store_url)
    try:
        await store.start()
        return await store.backup(path, key=key)
    finally:
        await store.close()


async def restore(settings: Settings, path: Path) -> RestoreResult:
    """Fill an empty database from a file that `backup` wrote. Raises BadBackup."""
    contents = check(path)
    keys = (contents.key or b"").split()
    store = SqlStore(settings.store_url)
    try:
        at_end = (lambda: add_keys(settings.key_path, keys)) if keys else (lambda: None)
        await store.restore(path, contents.manifest, at_end=at_end)
    finally:
        await store.close()
    async with open_services(settings, checks_key=False) as services:
        return RestoreResult(contents.manifest, bool(keys), await locked_models(services))
