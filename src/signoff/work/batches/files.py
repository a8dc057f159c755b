"""Files of users: storing what is uploaded, reading, listing and deleting."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import msgspec
import structlog

from signoff.blob import BlobWriter
from signoff.core.access import Caller
from signoff.core.batch import (
    BATCH_INPUT,
    EXPIRY_ANCHORS,
    EXPIRY_SECONDS,
    FILE_SECONDS,
    PURPOSES,
    FileFilter,
    StoredFile,
)
from signoff.core.choices import choice_of
from signoff.core.filters import Page
from signoff.errors import InvalidValue, MissingParameter, NotFound, SignoffError
from signoff.runtime.file_sizes import UploadSize
from signoff.work.services import Services

MAX_FILENAME_LENGTH = 255
GARBAGE_FILES = 100
MAX_SKIPPED_FILES = 1000
# Failures after which a turn of the collection ends.
MAX_FAILURES = 100
# Limits of one turn of the collection, and of the deletion of one blob.
COLLECT_SECONDS = 30.0
DELETE_SECONDS = 5.0
PARTIAL_SECONDS = 24 * 3600
log = structlog.get_logger()


class UploadFields(msgspec.Struct, frozen=True, kw_only=True):
    """Description of an uploaded file."""

    filename: str | None = None
    """Name of the file; None if the form has no file."""
    purpose: str | None = None
    """Purpose of the file."""
    anchor: str | None = None
    """Name of the time from which the lifetime counts, which must be `created_at`; None for the default lifetime."""
    seconds: str | None = None
    """Lifetime of the file in seconds, as the text of the form; None for the default."""


Fill = Callable[[BlobWriter], Awaitable[UploadFields]]
"""A function that writes the contents of a file, and returns its description."""


async def store_upload(services: Services, caller: Caller, fill: Fill) -> StoredFile:
    """Store a file whose contents `fill` writes, and return it.

    Raises InvalidValue, MissingParameter, and what `fill` and `store_file` raise.
    """
    file_id = f"file-{services.ids.new_id().replace('-', '')}"
    file = StoredFile(id=file_id, user_id=caller.user_id, filename="", purpose=BATCH_INPUT)

    async def describe(writer: BlobWriter) -> tuple[StoredFile, float | None]:
        fields = await fill(writer)
        purpose, lifetime_seconds = check_fields(fields)
        name = _plain_name(fields.filename or "")
        return msgspec.structs.replace(file, filename=name, purpose=purpose), lifetime_seconds

    return await store_file(services, file, describe)


async def store_file(
    services: Services, file: StoredFile, fill: Callable[[BlobWriter], Awaitable[tuple[StoredFile, float | None]]]
) -> StoredFile:
    """Store `file`, and return it. A failure, or the client leaving, discards it.

    `fill` writes the contents, and returns the file with its name and purpose, and its lifetime in seconds.
    Raises FilesTooLarge, NotFound if the file was erased meanwhile, and what `fill` raises.
    """
    await services.store.files.add(file)
    try:
        async with services.runtime.file_sizes.counting(file.user_id, services.store.files.stored_bytes) as size:
            async with services.adapters.blobs.write(file.blob) as writer:
                described, lifetime_seconds = await fill(_FileWriter(writer, size))
            whole = msgspec.structs.replace(described, size_bytes=writer.size_bytes)
            return await _complete(services, whole, lifetime_seconds)
    except BaseException:
        await asyncio.shield(services.runtime.background.spawn(_discard(services, file)))
        raise


class _FileWriter:
    """Writer of a blob that counts among the files of its owner; see `blob.BlobWriter`."""

    def __init__(self, writer: BlobWriter, size: UploadSize) -> None:
        self._writer = writer
        self._size = size

    @property
    def size_bytes(self) -> int:
        """See `blob.BlobWriter`."""
        return self._writer.size_bytes

    async def write(self, data: bytes) -> None:
        """See `blob.BlobWriter`. Raises FilesTooLarge."""
        self._size.add(len(data))
        await self._writer.write(data)


async def _complete(services: Services, file: StoredFile, lifetime_seconds: float | None) -> StoredFile:
    stored = await services.store.files.complete(file, lifetime_seconds=lifetime_seconds)
    if stored is None:
        raise NotFound("The file was deleted while it was uploaded.")
    return stored


async def _discard(services: Services, file: StoredFile) -> None:
    """Delete what is left of an upload. If that fails, the collector deletes it after a day."""
    with contextlib.suppress(SignoffError):
        await services.adapters.blobs.delete(file.blob)
        await services.store.files.purge([file.id])


def check_fields(fields: UploadFields) -> tuple[str, float | None]:
    """Return the purpose of a file, and its lifetime in seconds, None for no end.

    Raises InvalidValue, MissingParameter.
    """
    if fields.filename is None:
        raise MissingParameter("file")
    if fields.purpose is None:
        raise MissingParameter("purpose")
    purpose = supported_value("purpose", fields.purpose, PURPOSES)
    if fields.anchor is None and fields.seconds is None:
        return purpose, FILE_SECONDS if purpose == BATCH_INPUT else None
    supported_value("expires_after.anchor", fields.anchor or "", EXPIRY_ANCHORS)
    return purpose, float(expiry_seconds("expires_after", fields.seconds or ""))


def supported_value(param: str, text: str, supported: Sequence[str]) -> str:
    """Return the one of `supported` that a parameter is, in any case. Raises InvalidValue."""
    if (choice := choice_of(text, supported)) is None:
        known = ", ".join(map(repr, supported))
        raise InvalidValue(param, f"Invalid value for `{param}`: {text[:100]!r}. Supported values are: {known}.")
    return choice


def expiry_seconds(param: str, text: str) -> int:
    """Return a lifetime that OpenAI's API allows, from its text in seconds. Raises InvalidValue."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) in EXPIRY_SECONDS):
        limits = f"{EXPIRY_SECONDS.start} to {EXPIRY_SECONDS.stop - 1}"
        raise InvalidValue(
            f"{param}.seconds", f"`{param}[seconds]` must be an integer from {limits} (got {text[:100]!r})."
        )
    return int(text)


def _plain_name(name: str) -> str:
    """Return the last part of a file name, without characters that no name has."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(each for each in last if each.isprintable())[:MAX_FILENAME_LENGTH] or "file"


async def find_file(services: Services, caller: Caller, file_id: str) -> StoredFile:
    """Return a file of the caller; an admin may have any. Raises NotFound."""
    file = await services.store.files.get(file_id)
    if file is None or not may_read(caller, file.user_id):
        raise _no_file(file_id)
    return file


def may_read(caller: Caller, owner: int) -> bool:
    """Return True if the caller may use the files and batches of a user."""
    return caller.role == "admin" or caller.user_id == owner


def _no_file(file_id: str) -> NotFound:
    error = NotFound(f"No such File object: {file_id[:100]} was not found.")
    error.param = "id"
    return error


async def list_files(services: Services, filters: FileFilter) -> Page[StoredFile]:
    """Return a page of the files of a user."""
    return await services.store.files.page(filters)


async def read_file(services: Services, file: StoredFile) -> AsyncGenerator[bytes]:
    """Return a generator of the contents of a file, once its first piece is there. Raises BlobMissing, Overloaded."""
    chunks = services.adapters.blobs.read(file.blob)
    first = await anext(chunks, b"")

    async def pieces() -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(chunks):
            yield first
            while piece := await anext(chunks, b""):
                yield piece

    return pieces()


async def delete_file(services: Services, caller: Caller, file_id: str) -> None:
    """Delete a file of the caller. Batches in progress go on with its contents. Raises NotFound."""
    await find_file(services, caller, file_id)
    if not await services.store.files.delete(file_id):
        raise _no_file(file_id)
    with contextlib.suppress(SignoffError):  # the collector tries again
        await collect_files(services, seconds=DELETE_SECONDS)


async def discard_file(services: Services, file_id: str) -> None:
    """Delete a file of which only this server knows."""
    with contextlib.suppress(SignoffError):
        if await services.store.files.delete(file_id):
            await collect_files(services, seconds=DELETE_SECONDS)


async def collect_files(
    services: Services, skipped: set[str] | None = None, *, seconds: float = COLLECT_SECONDS
) -> None:
    """Delete the blobs of files that were deleted or have expired, and what killed uploads have left.

    End after about `seconds`. Raises Overloaded if the database does not answer.

    Args:
        services: The dependencies.
        skipped: Ids of files to try last, because their blobs could not be deleted; they are added to it, and it is
            cleared once all others are deleted.
        seconds: The time limit.
    """
    errors = await _collect(services, set() if skipped is None else skipped, seconds)
    if errors:  # one line for all, because a store that is down refuses each of them
        log.warning("blobs_not_deleted", files=len(errors), error=repr(errors[-1]))


async def _collect(services: Services, skipped: set[str], seconds: float) -> list[Exception]:
    clock, errors = asyncio.get_running_loop().time, list[Exception]()
    deadline = clock() + seconds
    while clock() < deadline and len(errors) < MAX_FAILURES:
        garbage = await services.store.files.garbage(GARBAGE_FILES, skip=skipped)
        if not garbage or len(skipped) > MAX_SKIPPED_FILES:
            skipped.clear()
            break
        deleted = list[str]()
        for file in garbage:
            if (left := deadline - clock()) <= 0:
                break
            try:
                async with asyncio.timeout(min(left, DELETE_SECONDS)):
                    await services.adapters.blobs.delete(file.blob)
                deleted.append(file.id)
            except Exception as error:  # noqa: BLE001 -- whatever fails, others may be deleted
                skipped.add(file.id)
                errors.append(error)
        if deleted:
            await services.store.files.purge(deleted)
    return errors


async def purge_partial_files(services: Services) -> None:
    """Delete what is left of uploads to processes that were killed, once it is older than PARTIAL_SECONDS."""
    count = await services.adapters.blobs.purge_partial(services.clock() - PARTIAL_SECONDS * 1_000_000)
    if count:
        log.info("partial_files_deleted", files=count)
