"""Blobs in a folder, or in a bucket of S3, Google Cloud Storage or Azure, through `obstore`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncGenerator, Generator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from signoff.blob import BLOB_NAME
from signoff.errors import BlobMissing, Overloaded

if TYPE_CHECKING:
    from obstore import AsyncWritableFile
    from obstore.store import ClientConfig, ObjectStore

BUFFER_BYTES = 8 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
# `LocalStore` writes a blob as `NAME#NUMBER` until it is complete.
_PARTIAL = re.compile(r"[A-Za-z0-9._-]+#\d+")
SCHEMES = ("s3", "gs", "az", "file")
# A server that sends nothing for READ_TIMEOUT is given up. `timeout` ends a download even while bytes flow, and has no
# value for none, so a slow reader of a large file gets a time that none needs.
READ_TIMEOUT, TOTAL_TIMEOUT = timedelta(seconds=30), timedelta(days=365)
_PROBE = "probe/signoff"
# Texts in errors 404 of S3, Google Cloud Storage and Azure, whose deletions have no codes.
_NO_BUCKET = (
    "<Code>NoSuchBucket</Code>",
    "<Code>ContainerNotFound</Code>",
    "The specified container does not exist.",
)


class ObjectBlobs:
    """Blobs in an object store; see `blob.Blobs`."""

    def __init__(self, store: ObjectStore, *, description: str, folder: Path | None = None) -> None:
        self._store = store
        self._description = description
        self._folder = folder

    @contextlib.asynccontextmanager
    async def write(self, name: str) -> AsyncGenerator[ObjectWriter]:
        """See `blob.Blobs`."""
        import obstore

        _check_name(name)
        with self._map_errors(name), _map_write_errors(self._description):
            if self._folder is not None:
                await asyncio.to_thread(_make_folder, (self._folder / name).parent)
            async with obstore.open_writer_async(self._store, name, buffer_size=BUFFER_BYTES) as file:
                yield ObjectWriter(file, name, self._description)
            if self._folder is not None:
                await asyncio.to_thread(_sync, self._folder / name)

    async def read(self, name: str, *, offset: int = 0) -> AsyncGenerator[bytes]:
        """See `blob.Blobs`."""
        import obstore

        _check_name(name)
        with self._map_errors(name):
            if offset:
                try:
                    size = (await obstore.head_async(self._store, name))["size"]
                except FileNotFoundError:  # an answer to HEAD has no body that tells a missing blob from a bucket
                    size = (await obstore.get_async(self._store, name)).meta["size"]
                if offset >= size:
                    return
                result = await obstore.get_async(self._store, name, options={"range": {"offset": offset}})
            else:
                result = await obstore.get_async(self._store, name)
            async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    async def delete(self, name: str) -> None:
        """See `blob.Blobs`."""
        import obstore

        _check_name(name)
        with contextlib.suppress(BlobMissing), self._map_errors(name):
            await obstore.delete_async(self._store, name)

    @contextlib.contextmanager
    def _map_errors(self, name: str) -> Generator[None]:
        """Convert errors of the object store in the block to BlobMissing, and to Overloaded also without a bucket."""
        with _map_errors(name):
            try:
                yield
            except FileNotFoundError as error:
                has_folder = self._folder is None or self._folder.is_dir()
                if has_folder and not any(code in str(error) for code in _NO_BUCKET):
                    raise
                raise _no_place(self._description) from error

    async def purge_partial(self, before: int) -> int:
        """See `blob.Blobs`."""
        return 0 if self._folder is None else await asyncio.to_thread(_purge_partial, self._folder, before)

    async def check(self) -> str:
        """See `blob.Blobs`."""
        async with self.write(_PROBE) as writer:
            await writer.write(b"signoff")
        content = b"".join([chunk async for chunk in self.read(_PROBE)])
        await self.delete(_PROBE)
        if content != b"signoff":
            raise Overloaded(f"{self._description} returned other bytes than were written to it; check `blob_url`.")
        return f"{self._description} can be written and read"


class ObjectWriter:
    """A blob that is being written; see `blob.BlobWriter`."""

    def __init__(self, file: AsyncWritableFile, name: str, place: str) -> None:
        self._file = file
        self._name = name
        self._place = place
        self.size_bytes = 0

    async def write(self, data: bytes) -> None:
        """See `blob.BlobWriter`."""
        with _map_errors(self._name), _map_write_errors(self._place):
            await self._file.write(data)
        self.size_bytes += len(data)


def open_blobs(url: str | None, folder: Path) -> ObjectBlobs:
    """Return the blobs at `url`, or in `folder` if that is None.

    Credentials and endpoints come from the variables that each provider's own tools read, such as
    `AWS_ACCESS_KEY_ID` and `AWS_ENDPOINT_URL`. Raises ValueError for a URL that cannot be used.
    """
    from obstore.store import LocalStore, from_url

    if url is None or url.startswith("file:"):
        path = folder if url is None else Path(url.removeprefix("file://"))
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return ObjectBlobs(LocalStore(path), description=f"the folder {path}", folder=path)
    if url.partition("://")[0] not in SCHEMES:
        raise ValueError(f"`blob_url` must begin with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}.")
    options: ClientConfig = {"allow_http": True, "timeout": TOTAL_TIMEOUT, "read_timeout": READ_TIMEOUT}
    try:
        return ObjectBlobs(from_url(url, client_options=options), description=url.partition("?")[0])
    except Exception as error:  # noqa: BLE001 -- each provider has errors of its own
        raise ValueError(f"`blob_url` cannot be used: {str(error).splitlines()[0]}") from None


def _check_name(name: str) -> None:
    if not BLOB_NAME.fullmatch(name):
        raise ValueError(f"The name of a blob must consist of letters, digits and `-_./` (got {name[:100]!r}).")


@contextlib.contextmanager
def _map_write_errors(place: str) -> Generator[None]:
    """Convert the error of a write to a bucket, container or folder that does not exist to Overloaded."""
    try:
        yield
    except FileNotFoundError as error:
        raise _no_place(place) from error


def _no_place(place: str) -> Overloaded:
    return Overloaded(f"The blob store cannot be used now: {place} does not exist; create it, or change `blob_url`.")


@contextlib.contextmanager
def _map_errors(name: str) -> Generator[None]:
    """Convert errors of the object store in the block to BlobMissing and Overloaded."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError:
        raise BlobMissing(
            f"The blob {name} is missing from the blob store; restore it, or upload the file again."
        ) from None
    except (BaseError, OSError) as error:
        raise Overloaded(f"The blob store cannot be used now: {str(error).splitlines()[0]}") from error


def _make_folder(path: Path) -> None:
    """Create a folder that nobody else can read; one that exists stays as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _sync(path: Path) -> None:
    """Make a file readable for this user alone, and flush it and its entry in the folder to the disk."""
    path.chmod(0o600)
    for each, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(each, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _purge_partial(folder: Path, before: int) -> int:
    count = 0
    for path in folder.rglob("*#*"):
        with contextlib.suppress(FileNotFoundError):  # its writer has just ended
            if _PARTIAL.fullmatch(path.name) and path.stat().st_mtime_ns < before * 1000:
                path.unlink()
                count += 1
    return count
