"""Record: when the row of a waiting call is written: first, after a second, or once at its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec
import structlog

from signoff.core.answer import Answer
from signoff.core.job import LEFT, Job, Status
from signoff.core.tokens import Usage
from signoff.errors import JobFailed, JobNotFound, Overloaded, SignoffError, Stale
from signoff.runtime.inflight import Flight
from signoff.store import Step
from signoff.work.inference.metering import columns_of, spent, waste
from signoff.work.inference.settle import error_of, settle
from signoff.work.services import Desk

COMMIT_SECONDS = 30.0
AGAIN_SECONDS = 0.5
log = structlog.get_logger()


async def begin_record(desk: Desk, job: Job, actor: str) -> Flight:
    """The call's flight. Where it has a key, may be held or is a run, its row stands; that may be another's job."""
    flight = Flight(job, actor=actor)
    if job.idempotency_key is None and not job.policy.may_hold and job.pipeline_id is None:
        desk.in_flight.add(flight)
        return flight
    file(desk, flight)
    try:
        standing = await asyncio.shield(flight.filing) if flight.filing else job
    except asyncio.CancelledError:
        await leave_record(desk, flight, actor)
        raise
    if standing.id != job.id:
        desk.leases.drop(job.id)
    flight.job = standing
    return flight


def file(desk: Desk, flight: Flight) -> None:
    """Begins to write the row, leased."""
    flight.filing = desk.background.spawn(_insert(desk, flight))


async def end_record(desk: Desk, flight: Flight, outcome: Answer | SignoffError) -> Job | None:
    """Settles the job if its row stands, else writes the whole of it. None if the job was no longer the call's."""
    desk.in_flight.drop(flight)
    await _count(desk, flight, outcome.usage if isinstance(outcome, Answer) else None)
    is_sure = await _is_filed(flight)
    if flight.filing is None:
        return await _write_whole(desk, flight, outcome)
    desk.leases.drop(flight.job.id)
    flight.ending = desk.background.spawn(_settle_or_write(desk, flight, outcome))
    try:
        settled = await asyncio.shield(flight.ending)
    except Overloaded as error:
        if is_sure:
            raise
        log.warning("the end of a call is written when the store is back", job=flight.job.id, error=repr(error))
        desk.background.spawn(_write_later(desk, flight, outcome))
        settled = None
    if settled is None and not is_sure:  # its caller has the answer, but what its row says nobody knows
        return msgspec.structs.replace(_ended(flight.job, outcome), cache="bypass")
    return settled


async def record_hit(desk: Desk, job: Job, actor: str) -> Job:
    """Writes a call that was answered from the cache; where its key stands already, the job that stands there."""
    if job.idempotency_key is not None:
        return await desk.store.jobs.insert(job, actor=actor, verb="hit")
    return await _write_behind(desk, job, actor, ["hit"])


async def leave_record(desk: Desk, flight: Flight, actor: str) -> None:
    """The caller has gone, or was cut off: the job is cancelled, unless that is done or its end is being written.

    Done even while the task is being cancelled.
    """
    desk.in_flight.drop(flight)
    if flight.lost:
        waste(desk, flight.job, flight.asking)
    if flight.lost or flight.is_recorded or flight.ending is not None:
        return
    await asyncio.shield(desk.background.spawn(_cancel(desk, flight, actor)))


def is_left(failure: JobFailed) -> bool:
    """Whether a job ended because those who asked for it have left."""
    return (failure.code, failure.status) == (LEFT.code, LEFT.status)


async def _insert(desk: Desk, flight: Flight) -> Job:
    job = await desk.store.jobs.insert(flight.job, actor=flight.actor, lease_seconds=desk.rules.lease_seconds)
    if job.id == flight.job.id and job.lease is not None and not flight.over:
        desk.leases.add(job.id, job.lease, flight.lose)
    return job


async def _settle_or_write(desk: Desk, flight: Flight, outcome: Answer | SignoffError) -> Job | None:
    try:
        return await settle(desk, flight.job, outcome)
    except JobNotFound:
        return await _write_whole(desk, flight, outcome)


async def _write_later(desk: Desk, flight: Flight, outcome: Answer | SignoffError) -> None:
    """Its caller has the answer, so the record is kept until the store takes it."""
    while True:
        await asyncio.sleep(AGAIN_SECONDS)
        with contextlib.suppress(Overloaded):
            await _settle_or_write(desk, flight, outcome)
            return


async def _write_whole(desk: Desk, flight: Flight, outcome: Answer | SignoffError) -> Job:
    ended = _ended(flight.job, outcome)
    return await _write_behind(desk, ended, flight.actor, ["submit", "claim", _verb(ended)], flight)


async def _write_behind(desk: Desk, ended: Job, actor: str, verbs: Sequence[str], flight: Flight | None = None) -> Job:
    """A call that has ended, in one row: behind its answer, or before it."""
    written = await desk.store.jobs.insert_ended(ended, actor=actor, verbs=verbs)
    if flight is not None:
        flight.is_recorded = True
    if desk.rules.log_before_answer or ended.made is not None:  # whose it is must be known by then
        return await _committed(written)
    written.add_done_callback(_complain)
    return ended


async def _committed(written: asyncio.Future[Job]) -> Job:
    try:
        async with asyncio.timeout(COMMIT_SECONDS):
            return await asyncio.shield(written)
    except TimeoutError:
        raise Overloaded("The database did not take the log of this call in time.") from None


async def _count(desk: Desk, flight: Flight, usage: Usage | None) -> None:
    """Adds what the asking took to the flight's job, once: its end may be tried again, or be left on its way."""
    if flight.is_counted:
        return
    asked_at = flight.asking.asked_at
    queued = None if asked_at is None else max(0, round((asked_at - flight.began_at) * 1_000_000))
    counted = await spent(desk, flight.job, flight.asking, usage, queued_us=queued)
    if not flight.is_counted:
        flight.job, flight.is_counted = counted, True


async def _is_filed(flight: Flight) -> bool:
    """Whether the row is known to stand. Where writing it failed it may stand all the same."""
    flight.over = True
    if flight.filing is None:
        return False
    try:
        await asyncio.shield(flight.filing)
    except Exception:  # noqa: BLE001 -- it was logged where it happened
        return False
    return True


async def _cancel(desk: Desk, flight: Flight, actor: str) -> None:
    await _count(desk, flight, None)
    await _is_filed(flight)
    if flight.filing is not None:
        desk.leases.drop(flight.job.id)
        changes = {"error": LEFT, "attempt": flight.job.attempt, "made": flight.job.made} | columns_of(flight.job)
        step = Step(verb="cancel", actor=actor, changes=changes)
        try:
            await desk.store.jobs.move(flight.job.id, step)
        except Stale:  # it has ended
            return
        except JobNotFound:
            if flight.job.idempotency_key is not None:  # it stands for another job, or for none
                return
        else:
            return
    ended = msgspec.structs.replace(flight.job, status="fail", error=LEFT, lease=None, seq=1)
    await (await desk.store.jobs.insert_ended(ended, actor=actor, verbs=["submit", "claim", "cancel"]))


def _ended(job: Job, outcome: Answer | SignoffError) -> Job:
    if isinstance(outcome, Answer):
        told = {"response": outcome.body, "usage": outcome.usage, "made": outcome.made}
        return msgspec.structs.replace(job, status="success", lease=None, **told)
    return msgspec.structs.replace(job, status="fail", error=error_of(outcome), lease=None)


def _verb(ended: Job) -> str:
    verbs: dict[Status, str] = {"success": "succeed", "fail": "fail"}
    return verbs[ended.status]


def _complain(written: asyncio.Future[Job]) -> None:
    if not written.cancelled() and (error := written.exception()) is not None:
        log.error("the log row of a call could not be written", error=repr(error))
