"""Export of feedback: a stream of rows, in the order of the receipts, in bounded memory."""

from collections.abc import AsyncIterator

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.reviews.feedback import Feedback, FeedbackQuery, feedback_of, row_of
from signoff.core.reviews.receipt import VerdictReceipt, parse_line
from signoff.records import ReceiptFilter, StoredReceipt
from signoff.work.services import Services

PAGE = 100


async def export_end(services: Services, caller: Caller) -> int:
    """Return the number of the newest receipt, which ends an export that begins now. Raises Forbidden."""
    check_admin(caller)
    return (await services.store.receipts.head()).count


async def export_feedback(
    services: Services, caller: Caller, query: FeedbackQuery, *, until_seq: int
) -> AsyncIterator[bytes]:
    """Yield a line of JSON for each decision that matches, up to the receipt `until_seq`; one job at a time is read.

    Decisions whose jobs were deleted or erased are left out. Raises Forbidden.
    """
    check_admin(caller)
    filters = ReceiptFilter(
        after_seq=query.after_seq, until_seq=until_seq, since=query.since, until=query.until, limit=PAGE
    )
    while page := await services.store.receipts.page(filters):
        for stored in page:
            # While the client reads, memory has only the line: contents and job are several times as large.
            if line := await _line(services, query, stored):
                yield line
        filters = msgspec.structs.replace(filters, after_seq=page[-1].seq)


async def _line(services: Services, query: FeedbackQuery, stored: StoredReceipt) -> bytes | None:
    """Return the line of the decision of a receipt; None if it has no row of that kind."""
    feedback = await _load(services, query, stored)
    row = None if feedback is None else row_of(feedback, query.kind)
    return None if row is None else msgspec.json.encode(row) + b"\n"


async def _load(services: Services, query: FeedbackQuery, stored: StoredReceipt) -> Feedback | None:
    """Return the decision of a receipt with its contents; None if it does not match, or if its contents are gone."""
    receipt, _ = parse_line(stored.line)
    if not isinstance(receipt, VerdictReceipt) or stored.salt is None:
        return None
    if query.target not in {None, receipt.target} or query.policy not in {None, receipt.policy}:
        return None
    job = await services.store.jobs.get(receipt.job_id)
    if job is None or query.prompt not in {None, job.prompt}:
        return None
    if query.prompt_version not in {None, job.prompt_version}:
        return None
    return feedback_of(receipt, job, await services.store.jobs.events(receipt.job_id))
