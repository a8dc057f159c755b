"""Record: when the row of a waiting call is written: first, after a second, or once at its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec
import structlog

from signoff.core.answer import Answer
from signoff.core.job import CALLER_LEFT, Job, Status
from signoff.core.tokens import Usage
from signoff.errors import JobFailed, JobNotFound, Overloaded, SignoffError, Stale
from signoff.runtime.inflight import InflightCall
from signoff.store import TransitionRequest
from signoff.work.inference.metering import add_attempt, record_wasted, usage_columns
from signoff.work.inference.settle import job_error, settle
from signoff.work.services import Services

COMMIT_SECONDS = 30.0
AGAIN_SECONDS = 0.5
log = structlog.get_logger()


async def begin_record(services: Services, job: Job, actor: str) -> InflightCall:
    """The call's flight. Where it has a key, may be held or is a run, its row stands; that may be another's job."""
    inflight = InflightCall(job, actor=actor)
    if job.idempotency_key is None and not job.policy.may_hold and job.pipeline_id is None:
        services.runtime.inflight_calls.add(inflight)
        return inflight
    persist(services, inflight)
    try:
        standing = await asyncio.shield(inflight.writing) if inflight.writing else job
    except asyncio.CancelledError:
        await cancel_record(services, inflight, actor)
        raise
    if standing.id != job.id:
        services.runtime.leases.drop(job.id)
    inflight.job = standing
    return inflight


def persist(services: Services, inflight: InflightCall) -> None:
    """Begins to write the row, leased."""
    inflight.writing = services.runtime.background.spawn(_insert(services, inflight))


async def end_record(services: Services, inflight: InflightCall, outcome: Answer | SignoffError) -> Job | None:
    """Settles the job if its row stands, else writes the whole of it. None if the job was no longer the call's."""
    services.runtime.inflight_calls.drop(inflight)
    await _count(services, inflight, outcome.usage if isinstance(outcome, Answer) else None)
    is_sure = await _is_filed(inflight)
    if inflight.writing is None:
        return await _write_whole(services, inflight, outcome)
    services.runtime.leases.drop(inflight.job.id)
    inflight.ending = services.runtime.background.spawn(_settle_or_write(services, inflight, outcome))
    try:
        settled = await asyncio.shield(inflight.ending)
    except Overloaded as error:
        if is_sure:
            raise
        log.warning("the end of a call is written when the store is back", job=inflight.job.id, error=repr(error))
        services.runtime.background.spawn(_write_later(services, inflight, outcome))
        settled = None
    if settled is None and not is_sure:  # its caller has the answer, but what its row says nobody knows
        return msgspec.structs.replace(_ended(inflight.job, outcome), cache="bypass")
    return settled


async def record_hit(services: Services, job: Job, actor: str) -> Job:
    """Writes a call that was answered from the cache; where its key stands already, the job that stands there."""
    if job.idempotency_key is not None:
        return await services.store.jobs.insert(job, actor=actor, verb="hit")
    return await _write_behind(services, job, actor, ["hit"])


async def cancel_record(services: Services, inflight: InflightCall, actor: str) -> None:
    """The caller has gone, or was cut off: the job is cancelled, unless that is done or its end is being written.

    Done even while the task is being cancelled.
    """
    services.runtime.inflight_calls.drop(inflight)
    if inflight.is_lost:
        record_wasted(services, inflight.job, inflight.attempt)
    if inflight.is_lost or inflight.is_recorded or inflight.ending is not None:
        return
    await asyncio.shield(services.runtime.background.spawn(_cancel(services, inflight, actor)))


def is_caller_left(failure: JobFailed) -> bool:
    """Whether a job ended because those who asked for it have left."""
    return (failure.code, failure.status) == (CALLER_LEFT.code, CALLER_LEFT.status)


async def _insert(services: Services, inflight: InflightCall) -> Job:
    job = await services.store.jobs.insert(
        inflight.job, actor=inflight.actor, lease_seconds=services.rules.lease_seconds
    )
    if job.id == inflight.job.id and job.lease is not None and not inflight.is_over:
        services.runtime.leases.add(job.id, job.lease, inflight.on_lease_lost)
    return job


async def _settle_or_write(services: Services, inflight: InflightCall, outcome: Answer | SignoffError) -> Job | None:
    try:
        return await settle(services, inflight.job, outcome)
    except JobNotFound:
        return await _write_whole(services, inflight, outcome)


async def _write_later(services: Services, inflight: InflightCall, outcome: Answer | SignoffError) -> None:
    """Its caller has the answer, so the record is kept until the store takes it."""
    while True:
        await asyncio.sleep(AGAIN_SECONDS)
        with contextlib.suppress(Overloaded):
            await _settle_or_write(services, inflight, outcome)
            return


async def _write_whole(services: Services, inflight: InflightCall, outcome: Answer | SignoffError) -> Job:
    ended = _ended(inflight.job, outcome)
    return await _write_behind(services, ended, inflight.actor, ["submit", "claim", _verb(ended)], inflight)


async def _write_behind(
    services: Services, ended: Job, actor: str, verbs: Sequence[str], inflight: InflightCall | None = None
) -> Job:
    """A call that has ended, in one row: behind its answer, or before it."""
    written = await services.store.jobs.insert_ended(ended, actor=actor, verbs=verbs)
    if inflight is not None:
        inflight.is_recorded = True
    if services.rules.log_before_answer or ended.upstream_object_id is not None:  # whose it is must be known by then
        return await _committed(written)
    written.add_done_callback(_complain)
    return ended


async def _committed(written: asyncio.Future[Job]) -> Job:
    try:
        async with asyncio.timeout(COMMIT_SECONDS):
            return await asyncio.shield(written)
    except TimeoutError:
        raise Overloaded("The database did not take the log of this call in time.") from None


async def _count(services: Services, inflight: InflightCall, usage: Usage | None) -> None:
    """Adds what the asking took to the flight's job, once: its end may be tried again, or be left on its way."""
    if inflight.is_counted:
        return
    asked_at = inflight.attempt.started_at
    queued = None if asked_at is None else max(0, round((asked_at - inflight.started_at) * 1_000_000))
    counted = await add_attempt(services, inflight.job, inflight.attempt, usage, queued_us=queued)
    if not inflight.is_counted:
        inflight.job, inflight.is_counted = counted, True


async def _is_filed(inflight: InflightCall) -> bool:
    """Whether the row is known to stand. Where writing it failed it may stand all the same."""
    inflight.is_over = True
    if inflight.writing is None:
        return False
    try:
        await asyncio.shield(inflight.writing)
    except Exception:  # noqa: BLE001 -- it was logged where it happened
        return False
    return True


async def _cancel(services: Services, inflight: InflightCall, actor: str) -> None:
    await _count(services, inflight, None)
    await _is_filed(inflight)
    if inflight.writing is not None:
        services.runtime.leases.drop(inflight.job.id)
        changes = {
            "error": CALLER_LEFT,
            "attempt": inflight.job.attempt,
            "upstream_object_id": inflight.job.upstream_object_id,
        } | usage_columns(inflight.job)
        step = TransitionRequest(verb="cancel", actor=actor, changes=changes)
        try:
            await services.store.jobs.transition(inflight.job.id, step)
        except Stale:  # it has ended
            return
        except JobNotFound:
            if inflight.job.idempotency_key is not None:  # it stands for another job, or for none
                return
        else:
            return
    ended = msgspec.structs.replace(inflight.job, status="fail", error=CALLER_LEFT, lease=None, seq=1)
    await (await services.store.jobs.insert_ended(ended, actor=actor, verbs=["submit", "claim", "cancel"]))


def _ended(job: Job, outcome: Answer | SignoffError) -> Job:
    if isinstance(outcome, Answer):
        told = {"response": outcome.body, "usage": outcome.usage, "upstream_object_id": outcome.upstream_object_id}
        return msgspec.structs.replace(job, status="success", lease=None, **told)
    return msgspec.structs.replace(job, status="fail", error=job_error(outcome), lease=None)


def _verb(ended: Job) -> str:
    verbs: dict[Status, str] = {"success": "succeed", "fail": "fail"}
    return verbs[ended.status]


def _complain(written: asyncio.Future[Job]) -> None:
    if not written.cancelled() and (error := written.exception()) is not None:
        log.error("the log row of a call could not be written", error=repr(error))
