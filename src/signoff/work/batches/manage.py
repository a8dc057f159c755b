"""Batches: creating, finding, listing, cancelling and deleting them."""

import msgspec

from signoff.batches import LineCounts
from signoff.core.access import Caller
from signoff.core.allow_list import checked_host
from signoff.core.api_paths import COUNT_TOKENS, KNOWN
from signoff.core.batch import MAX_OPEN_BATCHES, WINDOW_SECONDS, Batch, BatchFilter, BatchTotals
from signoff.core.delivery import WebhookTarget
from signoff.core.filters import MAX_PAGE_BYTES, Page
from signoff.core.job import Job
from signoff.errors import BacklogFull, BadRequest, Conflict, JobNotFound, KeyReused, NotFound, Stale
from signoff.work.batches.files import may_read
from signoff.work.jobs.deliver import seal_webhook
from signoff.work.jobs.query import MAX_COUNT, redacted
from signoff.work.services import Services

ENDPOINTS = tuple(sorted(KNOWN - {COUNT_TOKENS}))
"""Endpoints whose requests a batch may have."""
RETRY_SECONDS = 60.0


def new_batch_id(services: Services, prefix: str) -> str:
    """Return a new id, such as `batch_…`."""
    return f"{prefix}_{services.ids.new_id().replace('-', '')}"


async def check_open_batches(services: Services, caller: Caller, idempotency_key: str | None = None) -> None:
    """Raise BacklogFull if the caller has too many batches that have not ended, and has made none with the key."""
    if await services.store.batches.open_count(caller.user_id, at_most=MAX_OPEN_BATCHES) < MAX_OPEN_BATCHES:
        return
    # The key is looked up after the count, because the request that it repeats may have reached the bound just now.
    if await batch_with_key(services, caller, idempotency_key) is None:
        raise BacklogFull(
            f"You have {MAX_OPEN_BATCHES} batches that have not ended; wait for some to end, or cancel some.",
            retry_after_seconds=RETRY_SECONDS,
        )


async def batch_with_key(services: Services, caller: Caller, idempotency_key: str | None) -> Batch | None:
    """Return the batch that the caller has made with the key in the last 24 hours; None if there is none."""
    if idempotency_key is None:
        return None
    return await services.store.batches.by_key(caller.user_id, idempotency_key)


async def create_batch(services: Services, batch: Batch, webhook: WebhookTarget | None = None) -> Batch:
    """Store a batch, and return it, or the one that the caller has made with the same key.

    Raises AddressRefused, BadRequest without a secret to sign with, and KeyReused.
    """
    if webhook is not None:
        host = checked_host(webhook.url, services.rules.allow_list)
        batch = msgspec.structs.replace(batch, webhook=seal_webhook(services, webhook), webhook_host=host)
    stored = await services.store.batches.insert(batch, window_seconds=WINDOW_SECONDS)
    return stored if stored.id == batch.id else checked_repetition(stored, batch.fingerprint)


def checked_repetition(batch: Batch, fingerprint: str | None) -> Batch:
    """Return the batch that has the key of a request. Raises KeyReused if the request is not the one that made it."""
    if batch.fingerprint != fingerprint:
        raise KeyReused(f"`Idempotency-Key` {batch.idempotency_key!r} was used with another request; send a new one.")
    return batch


async def find_batch(services: Services, caller: Caller, batch_id: str) -> Batch:
    """Return a batch of the caller; an admin may have any. Raises NotFound."""
    batch = await services.store.batches.get(batch_id)
    if batch is None or not may_read(caller, batch.user_id):
        raise _no_batch(batch_id)
    return batch


async def list_batches(services: Services, filters: BatchFilter) -> Page[Batch]:
    """Return a page of the batches of a user."""
    return await services.store.batches.page(filters)


async def list_lines(services: Services, caller: Caller, batch_id: str, after_line: int, limit: int) -> Page[Job]:
    """Return a page of the jobs of the lines after `after_line`, as the caller may see them. Raises NotFound."""
    await find_batch(services, caller, batch_id)
    store = services.store.batches
    lines = await store.lines(batch_id, after_line=after_line, limit=limit, max_bytes=MAX_PAGE_BYTES)
    rest = lines and await store.lines(batch_id, after_line=lines[-1].batch_line or 0, limit=1, max_bytes=1)
    return Page((redacted(caller, job) for job in lines), may_continue=bool(rest))


async def waiting_lines(services: Services, batch: Batch) -> LineCounts:
    """Return the numbers of lines that wait for a model or for a review; counting of each ends at MAX_COUNT."""
    if batch.has_ended:
        return LineCounts(queued=0, held=0, is_overdue=False)
    return await services.store.batches.unended(batch.id, at_most=MAX_COUNT)


async def owner_of(services: Services, batch: Batch) -> str | None:
    """Return the email of the user whose batch it is; None if it has no user, or they were erased."""
    return await services.caches.reviewers.email_of(batch.user_id)


async def totals_of(services: Services, batch: Batch) -> BatchTotals:
    """Return the present numbers of lines of a batch, by their results and use of tokens."""
    if batch.totals is not None:
        return batch.totals
    if batch.total is None:
        return BatchTotals()
    return msgspec.structs.replace(await services.store.batches.totals(batch.id), total=batch.total)


async def cancel_batch(services: Services, caller: Caller, batch_id: str) -> Batch:
    """Begin to cancel a batch, unless that has begun; what is answered already stays. Raises NotFound, Conflict."""
    await find_batch(services, caller, batch_id)
    try:
        return await services.store.batches.cancel(batch_id)
    except Stale as error:
        raise Conflict(error.message) from None
    except JobNotFound:
        raise _no_batch(batch_id) from None


async def delete_batch(services: Services, caller: Caller, batch_id: str) -> None:
    """Delete a batch that has ended, with its files. Raises NotFound, BadRequest."""
    await find_batch(services, caller, batch_id)
    if not await services.store.batches.delete(batch_id):
        raise BadRequest(f"The batch {batch_id} has not ended; cancel it, and delete it once it has.")


def _no_batch(batch_id: str) -> NotFound:
    return NotFound(f"No batch found with id '{batch_id[:100]}'.")
