"""Looking after the data: a backup of it, and what is restored from one."""

from __future__ import annotations

from pathlib import Path

import msgspec

from signoff.infra.vault import add_keys
from signoff.server.bootstrap import open_services
from signoff.settings import Settings
from signoff.stores.archive import Manifest, check
from signoff.stores.sql import SqlStore
from signoff.work.admin.registry import locked_models


class RestoreResult(msgspec.Struct, frozen=True):
    """What came of a restore."""

    manifest: Manifest
    had_key: bool
    locked_models: list[str]


async def backup(settings: Settings, path: Path, *, with_key: bool) -> Manifest:
    """Writes everything into a new file, as it is now; servers go on. Raises BadBackup, SchemaOutdated."""
    key = settings.key_path.read_bytes() if with_key else None
    store = SqlStore(settings.store_url)
    try:
        await store.start()
        return await store.backup(path, key=key)
    finally:
        await store.close()


async def restore(settings: Settings, path: Path) -> RestoreResult:
    """Fills an empty database from a file that `backup` has made. Raises BadBackup."""
    contents = check(path)
    found = (contents.key or b"").split()
    store = SqlStore(settings.store_url)
    try:
        at_end = (lambda: add_keys(settings.key_path, found)) if found else (lambda: None)
        await store.restore(path, contents.manifest, at_end=at_end)
    finally:
        await store.close()
    async with open_services(settings) as services:
        return RestoreResult(contents.manifest, bool(found), await locked_models(services))
