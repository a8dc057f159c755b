"""Return of callers who left before their answer: an equal request gets the job that they left, and no second one."""

import asyncio
import contextlib
from collections.abc import Generator

import structlog

from signoff.core.ask import Ask
from signoff.core.filters import JobFilter
from signoff.core.job import CALLER_LEFT, STATUSES, TERMINAL, Job
from signoff.errors import Overloaded
from signoff.work.services import Services

# How long the answer of a job that has ended waits for a caller who left before.
ENDED_WITHIN_SECONDS = 600.0
MAX_CANDIDATES = 20
log = structlog.get_logger()


@contextlib.contextmanager
def waiting(services: Services, job: Job) -> Generator[None]:
    """Record for the duration of the block that a caller waits for `job`, so that others know if this process dies."""
    with services.runtime.caller_leases.waiting(job) if _is_rejoinable(job) else contextlib.nullcontext():
        yield


def forget_caller(services: Services, job: Job) -> None:
    """Delete the record that a caller waits for `job`: it has ended, and the caller gets its answer."""
    if _is_rejoinable(job):
        services.runtime.caller_leases.forget(job.id)


async def record_departure(services: Services, job: Job) -> None:
    """Record that the caller of `job` left without its answer, also if the current task is cancelled meanwhile.

    Does nothing if no equal request could join the job, or if another caller of this process waits for it.
    """
    if not _is_rejoinable(job) or services.runtime.caller_leases.is_waiting(job.id):
        return
    try:
        await asyncio.shield(services.runtime.background.spawn(services.store.departures.add(job)))
    except Overloaded as error:
        log.warning("departure_not_recorded", job_id=job.id, error=repr(error))


async def find_left_job(services: Services, ask: Ask, job: Job) -> Job | None:
    """Return the earlier job whose answer the caller of `ask` gets instead of that of `job`; None if there is none.

    The earlier job has the same token and request, and its caller has left; it may have ended since. Each such job is
    returned once. If `ask.is_retry` is true, an unfinished job is returned, too, whose caller is not known to have
    left. The job is not redacted.
    """
    if job.fingerprint is None:
        return None
    while (left := await services.store.departures.take(job, ended_within_seconds=ENDED_WITHIN_SECONDS)) is not None:
        if not left.is_terminal or _has_lasting_end(left):
            return left
    return await _find_unfinished(services, job) if ask.is_retry else None


def _is_rejoinable(job: Job) -> bool:
    """Return True if an equal request can join `job` while a person reviews its answer."""
    return job.fingerprint is not None and (job.policy.may_hold or job.pipeline_id is not None)


def _has_lasting_end(job: Job) -> bool:
    """Return True if the end of `job` answers an equal request: it succeeded, or failed so that no retry can help."""
    error = job.error
    return job.status == "success" or (error is not None and not error.retryable and error.code != CALLER_LEFT.code)


async def _find_unfinished(services: Services, job: Job) -> Job | None:
    """Return the newest unfinished job of the same token, door and request; None if there is none."""
    for status in STATUSES:
        if status in TERMINAL:
            continue
        job_filter = JobFilter(
            user_id=job.user_id, status=status, fingerprint=job.fingerprint, limit=MAX_CANDIDATES, newest_first=True
        )
        for candidate in await services.store.jobs.list(job_filter):
            if candidate.token_id == job.token_id and candidate.door == job.door:
                return candidate
    return None
