"""Queued jobs (the `later` lane): call the model for a claimed job, and settle the job."""

import asyncio
import contextlib

import msgspec
import structlog

from signoff.core.dialects.answer import Answer
from signoff.core.job import INTERRUPTED, Job
from signoff.errors import BudgetSpent, JobNotFound, LimitReached, Overloaded, SignoffError, Stale
from signoff.runtime.attempt import Attempt
from signoff.store import TransitionRequest
from signoff.work.attempt import run_attempt
from signoff.work.inference.metering import count_usage, usage_columns
from signoff.work.inference.reserve import release_reservation
from signoff.work.inference.settle import settle
from signoff.work.services import Services
from signoff.work.tracing import traced_work

# A job that waits for a limit tries again after this time plus jitter, as the limit may have been raised.
MAX_POSTPONE_SECONDS = 300.0
OVERLOADED_RETRY_SECONDS = 1.0
MAX_JITTER_SECONDS = 30.0
log = structlog.get_logger()


async def perform(services: Services, job: Job) -> bytes | None:
    """Call the model for a claimed job, settle the job, and return its answer; None unless the job succeeded.

    Under a limit that is reached, postpone the job. When cancelled, release the job with its attempt.
    When the lease is lost, leave the job to the worker that has it now.
    """
    assert job.lease is not None  # noqa: S101 -- claiming a job sets its lease
    attempt = Attempt(job, stream=asks_for_a_stream(job.body))
    with services.runtime.leases.holding(job.id, job.lease, attempt.on_lease_lost), traced_work(services, job):
        settled = await run_attempt(services, attempt, _JobRecorder(services, attempt), perform)
    has_succeeded = settled is not None and settled.status == "success"
    return attempt.outcome.body if has_succeeded and isinstance(attempt.outcome, Answer) else None


class _JobRecorder:
    """Recorder of a job that a worker has claimed: each end is a transition under the lease."""

    def __init__(self, services: Services, attempt: Attempt) -> None:
        self._services = services
        self._attempt = attempt

    async def settle(self, outcome: Answer | SignoffError) -> Job | None:
        """Settle the job, or postpone it. Its lease is dropped first, as the end of it is not a loss."""
        services, job = self._services, self._attempt.job
        services.runtime.leases.drop(job.id)
        seconds = None if self._attempt.is_reserved or job.pipeline_id is not None else _postponement(job, outcome)
        if seconds is None:
            try:
                return await settle(services, job, outcome)
            except JobNotFound:  # erased with its owner
                return None
        await _postpone(services, job, seconds)
        return job

    async def cut_off(self) -> None:
        """Release the job with its attempt; cancel a waiting call, which no worker claims again.

        That completes even if the current task is cancelled.
        """
        services, job = self._services, self._attempt.job
        await count_usage(services, self._attempt)
        await release_reservation(services, self._attempt)  # first, because another worker may claim the job at once
        try:
            await asyncio.shield(services.runtime.background.spawn(_release(services, self._attempt)))
        except Exception as error:  # noqa: BLE001 -- the lease lapses, and the sweeper rescues the job
            log.warning("job_release_failed", job_id=job.id, error=repr(error))
        else:
            if not job.is_waiting_call:
                services.adapters.broker.notify(job.id, job.priority)


def _postponement(job: Job, outcome: Answer | SignoffError) -> float | None:
    """Return the seconds after which a job that got no reservation tries again; None if it fails.

    A waiting run's step fails at once if a budget is spent, as that may last a day.
    """
    match outcome:
        case Overloaded():
            return OVERLOADED_RETRY_SECONDS
        case BudgetSpent() if job.lane == "now":
            return None
        case LimitReached():
            return outcome.retry_after_seconds
        case _:
            return None


async def _postpone(services: Services, job: Job, seconds: float) -> None:
    """Release the job with its attempt, due in about `seconds`.

    Jitter spreads the jobs that wait for the same limit.
    """
    wait = min(seconds, MAX_POSTPONE_SECONDS) + services.ids.random_float() * max(1.0, min(seconds, MAX_JITTER_SECONDS))
    request = TransitionRequest(
        verb="release", actor=services.ids.actor, lease=job.lease, after_seconds={"due_at": wait}
    )
    with contextlib.suppress(Stale):
        await services.store.jobs.transition(job.id, request)


async def _release(services: Services, attempt: Attempt) -> None:
    job, changes = attempt.job, usage_columns(attempt.job)
    request = TransitionRequest(verb="release", actor=services.ids.actor, lease=job.lease, changes=changes)
    if job.is_waiting_call:
        request = TransitionRequest(verb="cancel", actor=services.ids.actor, changes=changes | {"error": INTERRUPTED})
    await services.store.jobs.transition(job.id, request)


class _StreamField(msgspec.Struct):
    stream: bool = False


def asks_for_a_stream(body: bytes) -> bool:
    """Return True if `body` is a JSON object with `"stream": true`."""
    try:
        return msgspec.json.decode(body, type=_StreamField).stream
    except (ValueError, RecursionError):
        return False
