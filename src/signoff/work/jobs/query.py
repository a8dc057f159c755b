"""Look: jobs as their owners and reviewers may see them, and waiting for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import msgspec

from signoff.core.access import Caller, may_review, may_see
from signoff.core.filters import JobFilter
from signoff.core.job import STATUSES, TERMINAL, Event, Job, JobError
from signoff.errors import JobFailed, JobNotFound, JobPending, ReviewPending
from signoff.work.services import Services

COALESCE_PAGE = 20


async def get_job(services: Services, caller: Caller, job_id: str) -> Job:
    """The job as `caller` may see it. Raises JobNotFound, also for other people's jobs, and for steps of a run that
    may be held, until it is signed off: what they say is what it will say.
    """
    job = await services.store.jobs.get(job_id)
    if (
        job is None
        or not may_see(caller, job.user_id)
        or not (job.parent_id is None or await may_see_steps(services, caller, job))
    ):
        raise JobNotFound(f"There is no job {job_id}.")
    return redacted(caller, job)


async def may_see_steps(services: Services, caller: Caller, job: Job) -> bool:
    """Whether `caller` may see what a run's steps were asked and answered, given one of them, or the run itself."""
    if may_review(caller):
        return True
    while job.parent_id is not None:
        job = await load_job(services, job.parent_id)
    return job.status == "success" or not job.policy.may_hold


async def get_by_client_id(services: Services, caller: Caller, client_id: str) -> Job:
    """The job that `caller` calls so, or that has that id. Raises JobNotFound."""
    job = await services.store.jobs.by_client_id(caller.user_id, client_id)
    return await get_job(services, caller, client_id) if job is None else redacted(caller, job)


async def wait_for_end(services: Services, caller: Caller, job_id: str, seconds: float | None) -> Job:
    """The job as soon as it has ended, or as it is after `seconds`; None: after `hold_seconds`. Raises JobNotFound."""
    await get_job(services, caller, job_id)
    seconds = services.rules.hold_seconds if seconds is None else seconds
    return redacted(caller, await wait_until(services, job_id, seconds, lambda job: job.is_terminal))


async def list_jobs(services: Services, caller: Caller, which: JobFilter) -> tuple[list[Job], int]:
    """A page of the jobs that `caller` may see, and how many there are in all."""
    return await page_of_jobs(services, caller, which), await count_jobs(services, caller, which)


async def page_of_jobs(services: Services, caller: Caller, which: JobFilter) -> list[Job]:
    """A page of the jobs that `caller` may see."""
    return [redacted(caller, job) for job in await services.store.jobs.list(_seen_by(caller, which))]


async def count_jobs(services: Services, caller: Caller, which: JobFilter) -> int:
    """How many such jobs there are that `caller` may see."""
    return await services.store.jobs.count(_seen_by(caller, which))


def _seen_by(caller: Caller, which: JobFilter) -> JobFilter:
    """Steps of runs are in the log of theirs; those that wait for a reviewer are listed for reviewers too."""
    with_steps = may_review(caller) and which.status == "human"
    mine = msgspec.structs.replace(which, with_steps=with_steps)
    return mine if may_review(caller) else msgspec.structs.replace(mine, user_id=caller.user_id)


async def list_events(services: Services, caller: Caller, job_id: str) -> list[Event]:
    """What happened to the job, oldest first; without its data for those who may not review. Raises JobNotFound."""
    await get_job(services, caller, job_id)
    events = await services.store.jobs.events(job_id)
    return events if may_review(caller) else [msgspec.structs.replace(event, data={}) for event in events]


async def follow_events(services: Services, caller: Caller, job_id: str, after_seq: int) -> AsyncGenerator[list[Event]]:
    """The events after `after_seq`, as they happen, until the job has ended; an empty list while nothing does.

    Raises JobNotFound.
    """
    ended = False
    while not ended:
        ended = (await get_job(services, caller, job_id)).is_terminal
        new = [event for event in await list_events(services, caller, job_id) if event.seq > after_seq]
        after_seq = new[-1].seq if new else after_seq
        yield new
        if not ended:
            await wait_until(
                services, job_id, services.rules.keep_alive_seconds, lambda job, seq=after_seq: job.seq > seq
            )


async def load_job(services: Services, job_id: str) -> Job:
    """The job, unveiled: not for a caller's eyes. Raises JobNotFound."""
    job = await services.store.jobs.get(job_id)
    if job is None:
        raise JobNotFound(f"There is no job {job_id}.")
    return job


async def find_unfinished(services: Services, like: Job) -> Job | None:
    """The latest job that the same token asked with the same request, where it goes on; unveiled."""
    if like.fingerprint is None:
        return None
    for status in STATUSES:
        if status in TERMINAL:
            continue
        which = JobFilter(
            user_id=like.user_id, status=status, fingerprint=like.fingerprint, limit=COALESCE_PAGE, newest_first=True
        )
        for job in await services.store.jobs.list(which):
            if job.token_id == like.token_id and job.lane == like.lane:
                return job
    return None


async def wait_until(services: Services, job_id: str, seconds: float, until: Callable[[Job], bool]) -> Job:
    """The job once `until` holds, or as it is after `seconds`; unveiled."""
    deadline = asyncio.get_running_loop().time() + seconds
    with services.runtime.watcher.watch(job_id) as bell:
        while True:
            bell.clear()
            job = await load_job(services, job_id)
            bell.seq = job.seq
            if until(job):
                return job
            try:
                async with asyncio.timeout_at(deadline):
                    await bell.wait()
            except TimeoutError:
                return job


def require_success(job: Job) -> Job:
    """The job, if it has ended well. Raises JobFailed; ReviewPending and JobPending while it goes on."""
    match job.status:
        case "success":
            return job
        case "fail":
            raise failure_of_job(job)
        case "human":
            raise pending_error(job)
        case "bot" if job.parked_at is not None:
            raise pending_error(job)
        case "bot":
            raise JobPending(f"There is no answer yet. Ask for job {job.id} later.", job_id=job.id)


def pending_error(job: Job) -> ReviewPending:
    """The error for a caller whose patience has ended before somebody looked at `job`, or before a step of it."""
    what = "The answer still waits for a person."
    if job.parked_at is not None:
        what = "A step still waits, for a person or for room under a limit."
    return ReviewPending(f"{what} Ask for job {job.id} later.", job_id=job.id)


def failure_of_job(job: Job) -> JobFailed:
    """The error for a caller who waited for `job`, which ended in `fail`."""
    return caller_error(job, job.error or JobError(code="job_failed", message="The job ended without an answer."))


def caller_error(job: Job, error: JobError) -> JobFailed:
    """`error` as it is told to whoever waited for `job`."""
    return JobFailed(error.message, status=error.status, code=error.code, job_id=job.id)


def redacted(caller: Caller, job: Job) -> Job:
    """Nothing held is seen without a verdict, except by those who give it; nor is what was refused or cancelled."""
    if job.status not in {"human", "fail"} or may_review(caller):
        return job
    unseen = msgspec.structs.replace(job, response=None, draft=None, decision=None, usage=None)
    if job.round == 0:
        return unseen
    return msgspec.structs.replace(unseen, prompt_tokens=0, cached_tokens=0, completion_tokens=0, cost_nanodollars=None)
