"""Records of waiting calls: store the job first, after a second, or once at its end."""

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec
import structlog

from signoff.core.dialects.answer import Answer
from signoff.core.job import CALLER_LEFT, INTERRUPTED, Job
from signoff.errors import JobFailed, JobNotFound, Overloaded, SignoffError, Stale, write_timed_out
from signoff.runtime.attempt import Attempt
from signoff.runtime.backlogs import BacklogSlot
from signoff.runtime.inflight import InflightCall
from signoff.store import TransitionRequest
from signoff.work.attempt import to_caller_error
from signoff.work.inference.metering import count_usage, usage_columns
from signoff.work.inference.settle import job_error, settle
from signoff.work.jobs.backlog import reserve_slot
from signoff.work.services import Services

COMMIT_TIMEOUT_SECONDS = 30.0
RETRY_SECONDS = 0.5
log = structlog.get_logger()


async def begin_record(services: Services, attempt: Attempt, actor: str) -> InflightCall:
    """Return the in-flight call of `attempt`, made by `actor`.

    Store the job first if it has an idempotency key, may be held or is a run. The attempt then has the job that is
    stored under the key, which may be an earlier one. Raises BacklogFull for a job that is stored first.
    """
    inflight, job = InflightCall(attempt, actor=actor), attempt.job
    if job.idempotency_key is None and not job.policy.may_hold and job.pipeline_id is None:
        services.runtime.inflight_calls.add(inflight)
        return inflight
    slot = await reserve_slot(services, job)
    if not isinstance(slot, BacklogSlot):
        attempt.job = slot
        return inflight
    with slot:
        persist(services, inflight)
        try:
            stored = await asyncio.shield(inflight.writing) if inflight.writing else job
        except asyncio.CancelledError:
            await CallRecorder(services, inflight).cut_off()
            raise
    if stored.id != job.id:
        services.runtime.leases.drop(job.id)
    attempt.job = stored
    return inflight


def persist(services: Services, inflight: InflightCall) -> None:
    """Start to store the job, with a lease."""
    inflight.writing = services.runtime.background.spawn(_insert(services, inflight))


class CallRecorder:
    """Recorder of a waiting call: a job that is stored is settled, any other is stored once, with its outcome."""

    def __init__(self, services: Services, inflight: InflightCall) -> None:
        self._services = services
        self._inflight = inflight

    async def settle(self, outcome: Answer | SignoffError) -> Job | None:
        """Record the outcome; record the failure if that fails.

        Raises Overloaded if the store does not take a job that is stored already.
        """
        try:
            return await _record_end(self._services, self._inflight, outcome)
        except Exception as error:
            failure = to_caller_error(error, self._inflight.job)
            if not self._inflight.is_recorded:
                await _record_end(self._services, self._inflight, failure)
            raise failure from error

    async def cut_off(self) -> None:
        """Cancel the job of a caller who left, or of a process that stops, unless its end is or is being stored.

        The cancellation completes even if the current task is cancelled.
        """
        services, inflight = self._services, self._inflight
        services.runtime.inflight_calls.drop(inflight)
        if not inflight.is_recorded and inflight.ending is None:
            await asyncio.shield(services.runtime.background.spawn(_cancel(services, inflight)))


async def _record_end(services: Services, inflight: InflightCall, outcome: Answer | SignoffError) -> Job | None:
    """Settle the job if it is stored, else store it with its outcome. Return None if the lease was lost."""
    services.runtime.inflight_calls.drop(inflight)
    if inflight.writing is None and inflight.job.ruling is not None and inflight.job.ruling.outcome == "hold":
        persist(services, inflight)  # a person has been asked in place of the model, and the job must survive
    if inflight.writing is None:
        inflight.is_over = True
        return await _log_outcome(services, inflight, outcome)
    is_stored = await _is_row_stored(inflight)
    services.runtime.leases.drop(inflight.job.id)
    job = inflight.job
    settling = settle(services, job, outcome) if is_stored else _settle_or_insert(services, inflight, job, outcome)
    inflight.ending = services.runtime.background.spawn(settling)
    try:
        settled = await asyncio.shield(inflight.ending)
    except JobNotFound:  # the job has lapsed and was deleted, while this process was suspended
        return None
    except Overloaded as error:
        if is_stored:
            raise
        log.warning("call_record_deferred", job_id=inflight.job.id, error=repr(error))
        services.runtime.background.spawn(_retry_settle(services, inflight, job, outcome))
        settled = None
    # The caller has the answer, while the outcome of storing it is unknown: it must not be cached.
    if settled is None and not is_stored:
        return msgspec.structs.replace(_ended_job(inflight.job, outcome), cache="bypass")
    return settled


async def record_hit(services: Services, job: Job, actor: str) -> Job:
    """Store a call that the cache has answered, and return its job.

    Return the job that has the same idempotency key if there is one.
    """
    if job.idempotency_key is not None:
        return await services.store.jobs.insert(job, actor=actor, verb="hit")
    await _log_call(services, job, actor, ["hit"])
    return job


def is_caller_left(failure: JobFailed) -> bool:
    """Return True if the job ended because its callers left."""
    return (failure.code, failure.status) == (CALLER_LEFT.code, CALLER_LEFT.status)


async def _insert(services: Services, inflight: InflightCall) -> Job:
    job = await services.store.jobs.insert(
        inflight.job, actor=inflight.actor, lease_seconds=services.rules.lease_seconds
    )
    if job.id == inflight.job.id and job.lease is not None and not inflight.is_over:
        services.runtime.leases.add(job.id, job.lease, inflight.attempt.on_lease_lost)
    return job


async def _settle_or_insert(
    services: Services, inflight: InflightCall, job: Job, outcome: Answer | SignoffError
) -> Job | None:
    """Settle `job`, or insert it with its outcome if it was not stored.

    Return None if the lease was lost. A job that may have been stored, lapsed and deleted is not inserted again.
    """
    try:
        return await settle(services, job, outcome)
    except JobNotFound:
        if _may_be_deleted(services, inflight):
            return None
        ended = _ended_job(job, outcome)
        return await services.store.jobs.insert_ended(ended, actor=inflight.actor, verbs=_verbs(ended))


def _may_be_deleted(services: Services, inflight: InflightCall) -> bool:
    """Return True if the call is so old that its job may have been deleted, if it was stored."""
    age_seconds = asyncio.get_running_loop().time() - inflight.attempt.arrived_at
    retention_seconds = services.rules.retention_seconds
    return retention_seconds is not None and age_seconds > retention_seconds


async def _retry_settle(services: Services, inflight: InflightCall, job: Job, outcome: Answer | SignoffError) -> None:
    """Settle `job` until the store takes it, as the caller has the answer already; `inflight` has the settled job."""
    while True:
        await asyncio.sleep(RETRY_SECONDS)
        with contextlib.suppress(Overloaded):
            await _settle_or_insert(services, inflight, job, outcome)
            return


async def _log_outcome(services: Services, inflight: InflightCall, outcome: Answer | SignoffError) -> Job:
    """Log a call that was not stored before it ended, and return its job."""
    ended = _ended_job(inflight.job, outcome)
    await _log_call(services, ended, inflight.actor, _verbs(ended), inflight)
    return ended


async def _log_call(
    services: Services, ended: Job, actor: str, verbs: Sequence[str], inflight: InflightCall | None = None
) -> None:
    """Log a call that has ended. Wait for the commit only where the settings or its upstream object need that."""
    # The owner of an upstream object must be known before its caller can refer to it.
    must_wait = services.rules.log_before_answer or ended.upstream_object_id is not None
    commit = await services.store.jobs.log_call(ended, actor=actor, verbs=verbs, at_once=must_wait)
    if inflight is not None:
        inflight.is_recorded = True
    if must_wait:
        await _await_commit(commit)
    else:
        commit.add_done_callback(_log_failed_write)


async def _await_commit(commit: asyncio.Future[int]) -> None:
    try:
        async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
            await asyncio.shield(commit)
    except TimeoutError:
        raise write_timed_out() from None


async def _is_row_stored(inflight: InflightCall) -> bool:
    """Return True if the job is known to be stored. After a failed write it may be stored nevertheless."""
    inflight.is_over = True
    if inflight.writing is None:
        return False
    try:
        await asyncio.shield(inflight.writing)
    except Exception:  # noqa: BLE001 -- the task that writes has logged it
        return False
    return True


async def _cancel(services: Services, inflight: InflightCall) -> None:
    await count_usage(services, inflight.attempt)
    reason = INTERRUPTED if services.runtime.shutdown.is_interrupting else CALLER_LEFT
    is_stored = await _is_row_stored(inflight)
    if inflight.writing is not None:
        services.runtime.leases.drop(inflight.job.id)
        changes = {
            "error": reason,
            "attempt": inflight.job.attempt,
            "upstream_object_id": inflight.job.upstream_object_id,
        } | usage_columns(inflight.job)
        request = TransitionRequest(verb="cancel", actor=inflight.actor, changes=changes)
        try:
            await services.store.jobs.transition(inflight.job.id, request)
        except Stale:  # the job has ended
            return
        except JobNotFound:
            # Another job may have the idempotency key; and a job that is known to be stored has been deleted.
            if is_stored or inflight.job.idempotency_key is not None or _may_be_deleted(services, inflight):
                return
        else:
            return
    ended = msgspec.structs.replace(inflight.job, status="fail", error=reason, lease=None, seq=1)
    verbs = ["submit", "claim", "cancel"]
    if inflight.writing is None:
        await (await services.store.jobs.log_call(ended, actor=inflight.actor, verbs=verbs, at_once=True))
    else:
        await services.store.jobs.insert_ended(ended, actor=inflight.actor, verbs=verbs)


def _ended_job(job: Job, outcome: Answer | SignoffError) -> Job:
    """Return the job with its outcome, if it is stored only now; INTERRUPTED for an answer that no policy let pass."""
    is_passed = job.ruling is not None and job.ruling.outcome == "pass"
    if isinstance(outcome, Answer) and job.policy.may_hold and not is_passed:
        return msgspec.structs.replace(job, status="fail", error=INTERRUPTED, lease=None)
    if isinstance(outcome, Answer):
        changes = {"response": outcome.body, "usage": outcome.usage, "upstream_object_id": outcome.upstream_object_id}
        return msgspec.structs.replace(job, status="success", lease=None, **changes)
    return msgspec.structs.replace(job, status="fail", error=job_error(outcome), lease=None)


def _verbs(ended: Job) -> list[str]:
    """Return the transitions of a call that was stored only when it had ended."""
    return ["submit", "claim", "succeed"] if ended.status == "success" else ["submit", "claim", "fail"]


def _log_failed_write(commit: asyncio.Future[int]) -> None:
    if not commit.cancelled() and (error := commit.exception()) is not None:
        log.error("call_record_failed", error=repr(error))
