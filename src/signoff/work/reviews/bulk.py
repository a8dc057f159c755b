"""Bulk decisions: select similar answers, look at how many they are, decide on all of them, and undo that."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from signoff.core.access import Caller, check_may_review
from signoff.core.job import Job, Verdict
from signoff.core.reviews.bulk import (
    SINGLE_SHARE,
    Bulk,
    BulkItem,
    BulkState,
    SignalsCondition,
    stays_out_of_bulk,
)
from signoff.core.reviews.coin import toss
from signoff.core.reviews.queues import ReviewFilter, place_of
from signoff.core.reviews.ruling import Ruling
from signoff.errors import BadRequest, Conflict, NotFound, SignoffError
from signoff.work.reviews.desk import VerdictRequest, decide, undo_verdict
from signoff.work.reviews.held import is_free, user_left_out
from signoff.work.services import Services

# Answers, and bytes of their requests and answers, that a selection looks at.
MAX_EXAMINED = 2000
PAGE = 250
MAX_EXAMINED_BYTES = 32 * 1024 * 1024
_SINGLE = b"signoff single decision coin 1"
# Number of answers in a bulk for which the time to undo it is longer by `release_after_seconds`.
ITEMS_PER_UNDO = 100


class BulkSelection(msgspec.Struct, frozen=True, kw_only=True):
    """The answers for a bulk decision, and the verdict on all of them."""

    filters: ReviewFilter
    """Answers to look at, in the queues of the caller, and the largest number to select."""
    policy: str | None = None
    """Name of the policy that holds the answers; None for any."""
    signals: tuple[SignalsCondition, ...] = ()
    """Conditions on the signals of the answers, joined by AND."""
    verdict: Verdict
    """Verdict on each answer."""
    reason: str | None = None
    """Reason for it, which a rejection needs."""


async def select_bulk(services: Services, caller: Caller, selection: BulkSelection) -> Bulk:
    """Select the answers for a bulk decision, and return it for a preview; nothing is decided yet.

    Left out are answers that others have open, that the caller asked for, that have a draft, and that need single
    decisions. A random share of the other answers is left out too, so that reviewers cannot tell which need them. It is
    the same share in each selection: else those that stay away from repeated ones would be the others.
    """
    check_may_review(caller)
    verdict, reason, filters = selection.verdict, selection.reason, selection.filters
    if verdict == "reject" and not reason:
        raise BadRequest("`reason` is needed to reject answers: their callers get it.")
    key = services.adapters.vault.derive_key(_SINGLE)
    left_out, now = await user_left_out(services, caller), services.clock()
    items, examined, size_bytes, is_whole = list[BulkItem](), 0, 0, False
    while not is_whole and len(items) < filters.limit and examined < MAX_EXAMINED and size_bytes < MAX_EXAMINED_BYTES:
        page = await services.store.reviews.list(msgspec.structs.replace(filters, limit=PAGE))
        for job in page:
            examined, size_bytes = examined + 1, size_bytes + len(job.body) + len(job.response or b"")
            is_chosen = job.user_id != left_out and is_free(job, caller, now) and _matches(job, selection)
            if is_chosen and toss(key, job.id, job.round, job.attempt) >= SINGLE_SHARE and len(items) < filters.limit:
                items.append(BulkItem(job_id=job.id, round=job.round))
        is_whole = not page or not page.may_continue
        if page:
            filters = msgspec.structs.replace(filters, after=place_of(page[-1], filters.order))
    bulk = Bulk(
        id=services.ids.new_id(),
        reviewer=caller.email,
        verdict=verdict,
        reason=reason,
        items=tuple(items),
        examined=examined,
        is_whole=is_whole,
    )
    await services.store.reviews.add_bulk(bulk)
    return bulk


def _matches(job: Job, selection: BulkSelection) -> bool:
    ruling = job.ruling or Ruling(outcome="hold")
    return (
        selection.policy in {None, ruling.policy}
        and all(condition.matches(ruling.signals) for condition in selection.signals)
        and job.draft is None
        and not stays_out_of_bulk(job)
    )


async def apply_bulk(services: Services, caller: Caller, bulk_id: str) -> Bulk:
    """Decide on each answer that is still in the round of the selection, each with a decision of its own.

    A repeated call decides only on answers that the earlier one has not reached, as after a crash. Raises NotFound.
    """
    bulk = await get_bulk(services, caller, bulk_id)
    # A mistake in a decision on many answers takes longer to notice.
    factor = 1 + len(bulk.items) / ITEMS_PER_UNDO

    async def decide_one(item: BulkItem) -> Job:
        request = VerdictRequest(
            verdict=bulk.verdict,
            reason=bulk.reason,
            round=item.round,
            release_seconds=services.rules.release_after_seconds * factor,
            bulk_id=bulk.id,
        )
        return await decide(services, caller, item.job_id, request)

    return await _apply(services, bulk, "selected", "decided", decide_one)


async def undo_bulk(services: Services, caller: Caller, bulk_id: str) -> Bulk:
    """Undo each decision of a bulk that has not taken effect, also after a crash in the middle of `apply_bulk`.

    Raises NotFound, and Conflict if the bulk was not applied.
    """
    bulk = await get_bulk(services, caller, bulk_id)
    decided = await _decided_ids(services, bulk, bulk.items)
    items = [msgspec.structs.replace(each, state="decided") if each.job_id in decided else each for each in bulk.items]
    bulk = msgspec.structs.replace(bulk, items=tuple(items))
    if bulk.items and all(item.state == "selected" for item in bulk.items):
        raise Conflict("The bulk decision was not applied, so there is nothing to undo.")

    async def undo_one(item: BulkItem) -> Job:
        return await undo_verdict(services, caller, item.job_id, item.round)

    return await _apply(services, bulk, "decided", "undone", undo_one)


async def _apply(
    services: Services,
    bulk: Bulk,
    before: BulkState,
    after: BulkState,
    operation: Callable[[BulkItem], Coroutine[Any, Any, Job]],
) -> Bulk:
    """Call `operation` for each item in the state `before`, and store what came of each."""
    items = list[BulkItem]()
    for item in bulk.items:
        state, message = item.state, item.message
        if state == before:
            try:
                await operation(item)
                state, message = after, None
            except SignoffError as error:
                is_done = before == "selected" and bool(await _decided_ids(services, bulk, [item]))
                state, message = (after, None) if is_done else (_failed(before), error.message)
        items.append(msgspec.structs.replace(item, state=state, message=message))
    return await services.store.reviews.advance_bulk(msgspec.structs.replace(bulk, items=tuple(items)))


def _failed(before: BulkState) -> BulkState:
    """Return the state of an item on which the operation was not possible: a decision stays one."""
    return "skipped" if before == "selected" else before


async def _decided_ids(services: Services, bulk: Bulk, items: Sequence[BulkItem]) -> set[str]:
    """Return the jobs of `items` on which another call to apply the bulk has decided, and not noted it."""
    rounds = {item.job_id: item.round for item in items if item.state == "selected"}
    decisions = await services.store.reviews.decisions([*rounds])
    of_reviewer = [each for each in decisions if each.decision.reviewer == bulk.reviewer]
    ids = [each.job_id for each in of_reviewer if each.round == rounds[each.job_id]]
    return {job_id for job_id in ids if await _is_decided_by(services, bulk, job_id)}


async def _is_decided_by(services: Services, bulk: Bulk, job_id: str) -> bool:
    """Return True if `bulk` has decided on the job, and not its reviewer by a single verdict."""
    events = await services.store.jobs.events(job_id)
    return any(event.verb == "decide" and event.data.get("bulk_id") == bulk.id for event in events)


async def get_bulk(services: Services, caller: Caller, bulk_id: str) -> Bulk:
    """Return a bulk decision of `caller`. Raises Forbidden, NotFound."""
    check_may_review(caller)
    bulk = await services.store.reviews.bulk(bulk_id)
    if bulk is None or bulk.reviewer != caller.email:
        raise NotFound(f"There is no bulk decision {bulk_id} of yours; they are kept for a day.")
    return bulk
