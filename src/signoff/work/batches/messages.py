"""Batches of messages, whose requests come with their creation instead of in a file."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable

import msgspec

from signoff.blob import BlobWriter
from signoff.core.access import Caller
from signoff.core.api_paths import MESSAGES
from signoff.core.ask import check_idempotency_key
from signoff.core.batch import MESSAGES_INPUT, Batch, StoredFile
from signoff.errors import NotFound
from signoff.work.batches.files import discard_file, store_file
from signoff.work.batches.manage import (
    batch_with_key,
    check_open_batches,
    checked_repetition,
    create_batch,
    new_batch_id,
)
from signoff.work.services import Services

PREFIX = "msgbatch"
WRITE_BYTES = 1024 * 1024


class NewMessage(msgspec.Struct, frozen=True):
    """A request of a batch of messages."""

    custom_id: str
    """Id that the caller chose, unique in the batch."""
    params: msgspec.Raw
    """Body of the request."""


async def create_message_batch(
    services: Services, caller: Caller, requests: AsyncIterator[list[NewMessage]], *, idempotency_key: str | None
) -> Batch:
    """Store a batch of these requests, which are written while they come, and return it; it is in progress at once.

    If the caller has made a batch of the same requests with the same key, return that one, and store nothing.
    Raises BadRequest for an invalid key, KeyReused, FilesTooLarge, BacklogFull, NotFound if the user was erased
    meanwhile, and what `requests` raises.
    """
    check_idempotency_key(idempotency_key)
    await check_open_batches(services, caller, idempotency_key)
    count, digest = 0, hashlib.sha256(MESSAGES.encode())
    if (first := await batch_with_key(services, caller, idempotency_key)) is not None:
        await _write_lines(None, requests, digest.update)
        return checked_repetition(first, digest.hexdigest())
    batch_id = new_batch_id(services, PREFIX)
    number = batch_id.rpartition("_")[2]
    file = StoredFile(id=f"file-{number}-input", user_id=caller.user_id, filename="", purpose=MESSAGES_INPUT)

    async def fill(writer: BlobWriter) -> tuple[StoredFile, None]:
        nonlocal count
        count = await _write_lines(writer, requests, digest.update)
        return msgspec.structs.replace(file, filename=f"{batch_id}.jsonl"), None

    await store_file(services, file, fill)
    batch = Batch(
        id=batch_id,
        user_id=caller.user_id,
        api="anthropic",
        caller=caller,
        endpoint=MESSAGES,
        input_file_id=file.id,
        status="in_progress",
        total=count,
        idempotency_key=idempotency_key,
        fingerprint=digest.hexdigest(),
    )
    stored = None
    try:
        stored = await create_batch(services, batch)
        return stored
    finally:
        if stored is None or stored.id != batch.id:  # an unended batch keeps the contents even of a deleted file
            await asyncio.shield(services.runtime.background.spawn(discard_file(services, file.id)))


async def _write_lines(
    writer: BlobWriter | None, requests: AsyncIterator[list[NewMessage]], add: Callable[[bytes], None]
) -> int:
    """Write a line for each request, if there is a writer, pass all lines to `add`, and return their number."""
    lines, count = bytearray(), 0

    async def flush() -> None:
        add(bytes(lines))
        if writer is not None:
            await writer.write(bytes(lines))
        lines.clear()

    async for group in requests:
        for request in group:
            lines += msgspec.json.encode({"custom_id": request.custom_id, "body": _on_one_line(request.params)}) + b"\n"
        count += len(group)
        if len(lines) >= WRITE_BYTES:
            await flush()
    await flush()
    return count


def _on_one_line(params: msgspec.Raw) -> msgspec.Raw:
    """Return JSON without line breaks, which it has between its tokens only."""
    text = bytes(params)
    return msgspec.Raw(text.replace(b"\n", b" ").replace(b"\r", b" ")) if b"\n" in text or b"\r" in text else params


async def results_file(services: Services, batch: Batch) -> StoredFile:
    """Return the file with the results of a batch. Raises NotFound while there is none."""
    if batch.output_file_id is not None and (file := await services.store.files.get(batch.output_file_id)) is not None:
        return file
    raise NotFound(f"The batch {batch.id} has no results {'any more' if batch.has_ended else 'yet'}.")
