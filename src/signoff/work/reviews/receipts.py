"""Receipts of decisions: lists, export, the head and changes of the key for admins, and the public key for all."""

from collections.abc import AsyncIterator

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.reviews.figures import FigureQuery, FigureRow, FigureTotals
from signoff.core.reviews.receipt import Head, KeyReceipt
from signoff.errors import Conflict
from signoff.records import ReceiptFilter, StoredReceipt
from signoff.work.services import Services

PAGE = 200


async def public_key(services: Services) -> bytes:
    """Return the public key that signs the next receipt, as 32 bytes."""
    return await services.store.receipts.public_key()


def receipt_filter(*, after_seq: int, job_id: str | None, limit: int) -> ReceiptFilter:
    """Return the filter of a page of receipts, for doors, which may not import `records`."""
    return ReceiptFilter(after_seq=after_seq, job_id=job_id, limit=limit)


async def list_receipts(services: Services, caller: Caller, filters: ReceiptFilter) -> list[StoredReceipt]:
    """Return a page of receipts, with the salts of those whose contents are stored. Raises Forbidden."""
    check_admin(caller)
    return await services.store.receipts.page(filters)


async def receipts_head(services: Services, caller: Caller) -> Head:
    """Return a signed statement of the number and the hash of the last receipt. Raises Forbidden."""
    check_admin(caller)
    return await services.store.receipts.head()


async def export_receipts(services: Services, caller: Caller, filters: ReceiptFilter) -> AsyncIterator[bytes]:
    """Yield the lines of all receipts that match, page by page. Raises Forbidden."""
    check_admin(caller)
    filters = msgspec.structs.replace(filters, limit=PAGE)
    while page := await services.store.receipts.page(filters):
        for stored in page:
            yield stored.line + b"\n"
        filters = msgspec.structs.replace(filters, after_seq=page[-1].seq)


async def last_receipt_before(services: Services, caller: Caller, time: int) -> int:
    """Return the number of the last receipt before `time`, in microseconds since 1970, after which none is older.

    Raises Forbidden, and Conflict if there is none.
    """
    check_admin(caller)
    [first_kept] = await services.store.receipts.page(ReceiptFilter(since=time, limit=1)) or [None]
    last = (await services.store.receipts.head()).count if first_kept is None else first_kept.seq - 1
    [first] = await services.store.receipts.page(ReceiptFilter(limit=1))
    if last < first.seq:
        raise Conflict("There is no receipt before that time; name a later one.")
    return last


async def delete_archived_receipts(services: Services, caller: Caller, until_seq: int) -> int:
    """Declare the receipts up to `until_seq` as archived, and delete them. Return how many were deleted.

    It can be interrupted and started again. Raises Forbidden, and Conflict if there are not that many.
    """
    check_admin(caller)
    await services.store.receipts.archive(until_seq)
    count = 0
    while deleted := await services.store.receipts.delete_archived(PAGE):
        count += deleted
    return count


async def rotate_signing_key(services: Services, caller: Caller, *, is_lost: bool) -> KeyReceipt:
    """Replace the key that signs receipts; see `records.Receipts.rotate`. Raises Forbidden, Unreadable."""
    check_admin(caller)
    return await services.store.receipts.rotate(is_lost=is_lost)


async def review_figures(
    services: Services, caller: Caller, query: FigureQuery
) -> tuple[list[FigureRow], FigureTotals]:
    """Return a page of figures of reviews, and the total of all. Raises Forbidden."""
    check_admin(caller)
    return await services.store.receipts.figures(query)
