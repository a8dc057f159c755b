"""The run of a batch: the steps that a process makes with it while it has the lease.

Each step is recorded under the lease, so a process that was killed, or that is late, loses and repeats nothing.
"""

import asyncio
import contextlib

import structlog

from signoff.core.batch import BATCH_CANCELLED, BATCH_EXPIRED, Batch
from signoff.core.job import JobError
from signoff.errors import Stale, Unauthorized
from signoff.work.batches.callers import caller_of_batch
from signoff.work.batches.check import check_batch
from signoff.work.batches.finish import finish_batch
from signoff.work.batches.submit import submit_lines
from signoff.work.services import Services

CANCELLED_LINES = 100
# How soon a process looks again at a batch whose lines wait for models, and for reviewers.
QUEUED_SECONDS = 0.5
HELD_SECONDS = 3.0
RETRY_SECONDS = 5.0
log = structlog.get_logger()


async def run_batch(services: Services, batch: Batch) -> bool:
    """Go on with a leased batch until it must wait, and end the lease; return False if it waits."""
    lease = batch.lease or ""
    after_seconds: float | None = 0.0
    has_ended = False
    try:
        async with asyncio.TaskGroup() as group:
            renewal = group.create_task(_renew(services, batch.id, lease))
            try:
                after_seconds = await _advance(services, batch)
                has_ended = after_seconds is None
            finally:
                renewal.cancel()
    except* Stale:  # it was cancelled or erased, or another process has the lease
        has_ended = True
    except* Exception as errors:  # noqa: BLE001 -- the store may be back at the next time
        log.warning("batch_step_failed", batch_id=batch.id, errors=[repr(error) for error in errors.exceptions])
        after_seconds = RETRY_SECONDS
    finally:
        released = services.store.batches.release(batch.id, lease, after_seconds=after_seconds or 0.0)
        with contextlib.suppress(Exception):  # then it lapses
            await asyncio.shield(services.runtime.background.spawn(released))
    return has_ended


async def _renew(services: Services, batch_id: str, lease: str) -> None:
    """Renew the lease until cancelled. Raises Stale once it is lost."""
    while True:
        await asyncio.sleep(services.rules.heartbeat_seconds)
        try:
            renewed = await services.store.batches.renew({batch_id: lease}, services.rules.lease_seconds)
        except Exception as error:  # noqa: BLE001 -- the store is unavailable; the next heartbeat retries
            log.warning("batch_lease_renewal_failed", batch_id=batch_id, error=repr(error))
            continue
        if batch_id not in renewed:
            raise Stale(f"The lease of the batch {batch_id} was lost.")


async def _advance(services: Services, batch: Batch) -> float | None:
    """Make the steps that are possible now, and return the seconds until the next ones may be; None at the end.

    Raises Stale.
    """
    while not batch.has_ended:
        match batch.status:
            case "validating":
                batch = await check_batch(services, batch)
            case "in_progress":
                following = await _progress(services, batch)
                if not isinstance(following, Batch):
                    return following
                batch = following
            case "cancelling":
                await _cut_off(services, batch, BATCH_CANCELLED)
                batch = await finish_batch(services, batch)
            case _:
                batch = await finish_batch(services, batch)
    log.info("batch_ended", batch_id=batch.id, status=batch.status)
    return None


async def _progress(services: Services, batch: Batch) -> Batch | float:
    """Submit lines, and return the batch once all have ended; else the seconds to wait. Raises Stale."""
    try:
        await caller_of_batch(services, batch)  # raises Unauthorized if the user was disabled meanwhile
        counts = await services.store.batches.unended(batch.id, at_most=1)
        if batch.outcome is None and not counts.is_overdue:
            batch = await submit_lines(services, batch)
            if batch.has_ended:
                return batch
    except Unauthorized as error:
        log.warning("batch_stopped", batch_id=batch.id, error=error.message)
        cancelled = {"status": "cancelling", "outcome": "cancelled"}
        return await services.store.batches.change(
            batch.id, batch.lease or "", "in_progress", changes=cancelled, now=["cancelling_at"]
        )
    counts = await services.store.batches.unended(batch.id, at_most=1)
    if batch.outcome == "completed" and not counts.queued and not counts.held:
        return await _finalize(services, batch, "completed")
    if counts.is_overdue:
        await _cut_off(services, batch, BATCH_EXPIRED)
        return await _finalize(services, batch, "expired")
    is_submitting = batch.outcome is None and not batch.errors
    return QUEUED_SECONDS if counts.queued or is_submitting else HELD_SECONDS


async def _finalize(services: Services, batch: Batch, outcome: str) -> Batch:
    changes = {"status": "finalizing", "outcome": outcome}
    return await services.store.batches.change(
        batch.id, batch.lease or "", "in_progress", changes=changes, now=["finalizing_at"]
    )


async def _cut_off(services: Services, batch: Batch, error: JobError) -> None:
    """Cancel all jobs of the batch that have not ended. Raises Stale."""
    cancel_lines = services.store.batches.cancel_lines
    while True:
        if await cancel_lines(batch, error, actor=services.ids.actor, limit=CANCELLED_LINES):
            continue
        counts = await services.store.batches.unended(batch.id, at_most=1)
        if not counts.queued and not counts.held:
            return
        await asyncio.sleep(QUEUED_SECONDS)  # a worker is settling one at this moment
