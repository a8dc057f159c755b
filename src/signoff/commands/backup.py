"""Backup of all data into one file, and restore from such a file."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from signoff.blob import BLOB_NAME
from signoff.errors import BlobMissing
from signoff.infra.vault import add_keys, load_keys
from signoff.server.adapters import make_blobs
from signoff.server.bootstrap import open_services
from signoff.settings import BadSettings, Settings
from signoff.stores.archive import CHUNK_BYTES, ArchiveWriter, BadBackup, Manifest, check, members
from signoff.stores.sql import SqlStore
from signoff.work.admin.registry import locked_models

# Members of an archive with the contents of files, by the names of their blobs.
FOLDER = "blobs"


class RestoreResult(msgspec.Struct, frozen=True):
    """Result of a restore."""

    manifest: Manifest
    """Description of the backup: its time and its numbers of rows."""
    had_key: bool
    """True if the backup contained the encryption key."""
    is_key_in_use: bool
    """False if the setting `secret_key` lacks the key of the backup, which was added to the key file."""
    locked_models: list[str]
    """Names of the models whose upstream keys the encryption key does not open."""


async def backup(settings: Settings, path: Path, *, with_key: bool, skip_missing: bool = False) -> Manifest:
    """Write all data, as of one moment, into the new file `path`, while servers run.

    With `skip_missing`, files whose contents the blob store has lost are left out. Raises BadBackup, SchemaOutdated,
    and BadSettings if the encryption key cannot be read.
    """

    async def save_files(archive: ArchiveWriter) -> None:
        missing = await _save_files(settings, store, archive)
        if missing and not skip_missing:
            raise BadBackup(
                f"The contents of {len(missing)} files are missing from the blob store, such as {missing[0]}. "
                "Check `blob_url`, or leave these files out with --skip-missing."
            )

    key = b"\n".join(_keys(settings)) + b"\n" if with_key else None
    store = SqlStore(settings.store_url)
    try:
        await store.start()
        return await store.backup(path, key=key, save_files=save_files)
    finally:
        await store.close()


async def restore(settings: Settings, path: Path) -> RestoreResult:
    """Fill an empty database from a file that `backup` wrote.

    A key of the backup that the setting `secret_key` lacks is added to the key file, too, so that it is not lost.
    Raises BadBackup.
    """
    contents = check(path)
    _check_file_names(path, contents.manifest)
    keys = (contents.key or b"").split()
    missing = [key for key in keys if settings.secret_key is None or key not in _keys(settings)]
    store = SqlStore(settings.store_url)
    try:

        def at_end() -> None:
            """Write the contents of files and the keys; a failure undoes the transaction, in which this runs."""
            with ThreadPoolExecutor(1) as thread:  # because the thread of a transaction may have an event loop
                thread.submit(asyncio.run, _restore_files(settings, path)).result()
            if missing:
                add_keys(settings.key_path, missing)

        await store.restore(path, contents.manifest, at_end=at_end)
    finally:
        await store.close()
    async with open_services(settings, checks_key=False) as services:
        is_key_in_use = settings.secret_key is None or not missing
        return RestoreResult(contents.manifest, bool(keys), is_key_in_use, await locked_models(services))


def _keys(settings: Settings) -> list[bytes]:
    """Return the encryption keys, newest first. Raises BadSettings if their file cannot be read."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode().split()
    try:
        return load_keys(settings.key_path)
    except OSError as error:
        raise BadSettings(
            f"The encryption key cannot be read from {settings.key_path}: {error.strerror}. "
            "Set `secret_key_file` or `secret_key` as for the servers, or leave --with-key out."
        ) from None


async def _save_files(settings: Settings, store: SqlStore, archive: ArchiveWriter) -> list[str]:
    """Add the contents of all files, and return the names of blobs that are missing.

    The contents of a file that was deleted since the snapshot are left out; they are not missing.
    """
    blobs, missing = make_blobs(settings), list[str]()
    for name in await store.files.blobs():
        number = 0
        try:
            async with contextlib.aclosing(blobs.read(name)) as pieces:
                async for piece in pieces:
                    archive.add(f"{FOLDER}/{name}/{number:06}", piece)
                    number += 1
        except BlobMissing:
            missing.append(name)
        else:
            if not number:
                archive.add(f"{FOLDER}/{name}/{number:06}", b"")
    if missing:
        missing = sorted({*missing} & {*await store.files.blobs()})
    return missing


def _check_file_names(path: Path, manifest: Manifest) -> None:
    """Raise BadBackup if a member has the contents of a file, and a name that no file can have."""
    for member in manifest.members:
        if member.startswith(f"{FOLDER}/") and not BLOB_NAME.fullmatch(_blob_of(member)):
            raise BadBackup(f"{path} has a file with the name {member[:100]!r}, which no backup has; use another one.")


def _blob_of(member: str) -> str:
    """Return the name of the blob of which a member has a part."""
    return member.removeprefix(f"{FOLDER}/").rpartition("/")[0]


async def _restore_files(settings: Settings, path: Path) -> None:
    """Write the contents of all files of a backup. Those of one file follow each other in the archive."""
    blobs, present = make_blobs(settings), ""
    async with contextlib.AsyncExitStack() as last:
        writer = None
        for member in members(path):
            if not member.name.startswith(f"{FOLDER}/"):
                continue
            name = _blob_of(member.name)
            if writer is None or name != present:
                await last.aclose()
                present, writer = name, await last.enter_async_context(blobs.write(name))
            while member.left_bytes:
                await writer.write(member.read(min(member.left_bytes, CHUNK_BYTES)))
