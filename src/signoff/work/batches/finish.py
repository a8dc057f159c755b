"""The results of a batch: one file with the answers, and one with the requests that have none.

The names of the files, and their contents, follow from the batch and its jobs, which have ended. So a process that goes
on where another one was killed writes the same files again, and the end of the batch is recorded once.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import structlog

from signoff.blob import BlobWriter
from signoff.core.batch import (
    BATCH_CANCELLED,
    BATCH_EXPIRED,
    BATCH_OUTPUT,
    MESSAGES_OUTPUT,
    Batch,
    BatchOutcome,
    StoredFile,
)
from signoff.core.batch_results import BatchCounter, batch_line_id, result_of_job, result_without_job
from signoff.core.job import Job, JobError
from signoff.errors import BlobMissing, SignoffError, Stale
from signoff.work.batches.read import checked_request, lost_contents, read_lines
from signoff.work.services import Services

PAGE_LINES = 200
PAGE_BYTES = 8 * 1024 * 1024
_ERROR_OF_OUTCOME: dict[BatchOutcome | None, JobError] = {"expired": BATCH_EXPIRED, "cancelled": BATCH_CANCELLED}
log = structlog.get_logger()


async def finish_batch(services: Services, batch: Batch) -> Batch:
    """Write the results of a leased batch whose jobs have ended, and end the batch; return it.

    Raises Stale if the lease was lost; then another process finishes the batch.
    """
    output, errors = _file_of(batch, "output"), _file_of(batch, "errors")
    counter, sizes = await _write_results(services, batch, output, errors)
    changes = _changes(batch, counter)
    outcome = batch.outcome or "completed"
    try:
        return await services.store.batches.finish(
            batch,
            outcome,
            changes=changes,
            output=_sized(output, sizes[0]),
            errors=_sized(errors, sizes[1]),
        )
    except Stale:
        if await services.store.batches.get(batch.id) is None:  # erased with its owner
            await asyncio.shield(services.runtime.background.spawn(_delete(services, output, errors)))
        raise


def _changes(batch: Batch, counter: BatchCounter) -> dict[str, Any]:
    """Return the columns to set at the end; requests that could not be read any more count as failed or cut off."""
    lost = 0 if batch.total is None else max(0, batch.total - counter.count)
    if not lost:
        return {"totals": counter.totals(), "total": counter.count, "errors": ()}
    counter.add_unsubmitted(_ERROR_OF_OUTCOME.get(batch.outcome), lost)
    return {"totals": counter.totals(), "total": counter.count, "errors": (lost_contents(batch),)}


async def _delete(services: Services, *files: StoredFile) -> None:
    for file in files:
        with contextlib.suppress(SignoffError):
            await services.adapters.blobs.delete(file.blob)


def _file_of(batch: Batch, kind: str) -> StoredFile:
    purpose = MESSAGES_OUTPUT if batch.api == "anthropic" else BATCH_OUTPUT
    name = f"{batch.id}_{kind}.jsonl"
    return StoredFile(id=f"file-{batch.number}-{kind}", user_id=batch.user_id, filename=name, purpose=purpose)


def _sized(file: StoredFile, size_bytes: int) -> StoredFile | None:
    """Return the file with its size; None for one that has no line."""
    return msgspec.structs.replace(file, size_bytes=size_bytes) if size_bytes else None


async def _write_results(
    services: Services, batch: Batch, output: StoredFile, errors: StoredFile
) -> tuple[BatchCounter, tuple[int, int]]:
    """Write both files, and return the counts and the sizes of the files. An empty file stays without a row."""
    counter = BatchCounter()
    async with contextlib.AsyncExitStack() as stack:
        answers = _LazyWriter(services, output, stack)
        # Anthropic's results are one file.
        rest = answers if batch.api == "anthropic" else _LazyWriter(services, errors, stack)
        async for page in _pages(services, batch):
            for job in page:
                counter.add(job)
                await (answers if job.status == "success" else rest).write(result_of_job(batch, job))
            await asyncio.sleep(0)
        await _write_unsubmitted(services, batch, rest, counter)
    return counter, (answers.size_bytes, 0 if rest is answers else rest.size_bytes)


async def _pages(services: Services, batch: Batch) -> AsyncGenerator[list[Job]]:
    """Yield all jobs of a batch in the order of their lines."""
    after_line = 0
    while page := await services.store.batches.lines(
        batch.id, after_line=after_line, limit=PAGE_LINES, max_bytes=PAGE_BYTES
    ):
        yield page
        after_line = page[-1].batch_line or 0


async def _write_unsubmitted(services: Services, batch: Batch, errors: "_LazyWriter", counter: BatchCounter) -> None:
    """Write the lines that no job was stored for before the batch expired or was cancelled, as far as they are left."""
    error = _ERROR_OF_OUTCOME.get(batch.outcome)
    if error is None or batch.total is None:
        return
    try:
        async with contextlib.aclosing(read_lines(services, batch, from_place=True)) as lines:
            async for line in lines:
                custom_id = checked_request(line).custom_id
                await errors.write(result_without_job(batch, batch_line_id(batch, line.number), custom_id, error))
                counter.add_unsubmitted(error)
    except BlobMissing as missing:
        log.warning("batch_input_missing", batch_id=batch.id, error=missing.message)


class _LazyWriter:
    """Writer of a file that is created with its first line."""

    def __init__(self, services: Services, file: StoredFile, stack: contextlib.AsyncExitStack) -> None:
        self._services = services
        self._file = file
        self._stack = stack
        self._writer: BlobWriter | None = None

    @property
    def size_bytes(self) -> int:
        """Number of bytes that were written."""
        return 0 if self._writer is None else self._writer.size_bytes

    async def write(self, line: bytes) -> None:
        """Append a line."""
        if self._writer is None:
            self._writer = await self._stack.enter_async_context(self._services.adapters.blobs.write(self._file.blob))
        await self._writer.write(line)
