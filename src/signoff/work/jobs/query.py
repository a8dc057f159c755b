"""Queries: jobs as their owners and reviewers may see them, and waiting for their changes."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from signoff.core.access import Caller, may_review, may_see, public_actor
from signoff.core.filters import JobFilter, Page
from signoff.core.job import TERMINAL, WITHOUT_ANSWER, Event, Job, JobError
from signoff.core.reviews.marks import event_without_marks, events_as_held, sees_marks, without_marks
from signoff.core.reviews.votes import event_as_seen_by
from signoff.errors import Interrupted, JobFailed, JobNotFound, JobPending, ReviewPending, SignoffError
from signoff.work.admin.people import refresh
from signoff.work.services import Services

# A count costs as much as the rows that it counts, so that of a long history ends here.
MAX_COUNT = 10_000


async def get_job(services: Services, caller: Caller, job_id: str) -> Job:
    """Return the job as `caller` may see it.

    Raises JobNotFound, also for other users' jobs, and for the steps of a run that may be held until it is signed off,
    as their answers give away its own.
    """
    job = await services.store.jobs.get(job_id)
    if (
        job is None
        or not may_see(caller, job.user_id)
        or (job.copy_of is not None and not may_review(caller))
        or not (job.parent_id is None or await may_see_steps(services, caller, job))
    ):
        raise JobNotFound(f"The job {job_id} does not exist, or you may not see it.")
    return redacted(caller, job)


async def may_see_steps(services: Services, caller: Caller, job: Job) -> bool:
    """Return True if `caller` may see the values of a run's steps; `job` is the run or one of its steps."""
    if may_review(caller):
        return True
    while job.parent_id is not None:
        job = await load_job(services, job.parent_id)
    return job.status == "success" or not job.policy.may_hold


async def get_by_client_id(services: Services, caller: Caller, client_id: str) -> Job:
    """Return the newest job of `caller` with this client id, or the job with this id. Raises JobNotFound."""
    job = await services.store.jobs.by_client_id(caller.user_id, client_id)
    return await get_job(services, caller, client_id) if job is None else redacted(caller, job)


async def wait_for_end(services: Services, caller: Caller, job_id: str, seconds: float | None) -> Job:
    """Return the job as soon as it has ended, or as it is after `seconds` or when the server stops.

    If `seconds` is None, it is `hold_seconds` of the settings. The rights of `caller` are looked at again while it
    waits. Raises JobNotFound, and Unauthorized once they are gone.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + (services.rules.hold_seconds if seconds is None else seconds)
    job = await get_job(services, caller, job_id)
    while not job.is_terminal and (remaining := deadline - clock()) > 0:
        wait_seconds = min(remaining, services.rules.keep_alive_seconds)
        await wait_in_request(services, job_id, wait_seconds, lambda job: job.is_terminal)
        caller = await refresh(services, caller)
        job = await get_job(services, caller, job_id)
        if services.runtime.shutdown.is_interrupting:
            break
    return job


class JobCount(msgspec.Struct, frozen=True):
    """Number of jobs, as far as they were counted."""

    number: int
    """The number of jobs, at most MAX_COUNT."""
    is_capped: bool
    """True if there are more jobs."""

    def __str__(self) -> str:
        return f"{self.number:,}+" if self.is_capped else f"{self.number:,}"


async def list_jobs(services: Services, caller: Caller, job_filter: JobFilter) -> Page[Job]:
    """Return a page of the jobs that `caller` may see."""
    page = await services.store.jobs.list(_visible_to(caller, job_filter))
    return Page((redacted(caller, job) for job in page), may_continue=page.may_continue)


async def departed_callers(services: Services, jobs: Sequence[Job]) -> dict[str, int]:
    """Return the times at which callers who waited for held answers left, by job; those who wait are not in it."""
    ids = [job.id for job in jobs if not job.is_terminal and job.fingerprint is not None]
    return await services.store.departures.left_at(ids)


async def count_jobs(services: Services, caller: Caller, job_filter: JobFilter) -> JobCount:
    """Return the number of matching jobs that `caller` may see; counting stops at MAX_COUNT."""
    number = await services.store.jobs.count(_visible_to(caller, job_filter), at_most=MAX_COUNT + 1)
    return JobCount(min(number, MAX_COUNT), number > MAX_COUNT)


def _visible_to(caller: Caller, job_filter: JobFilter) -> JobFilter:
    """Narrow the filter to jobs that `caller` may see.

    Steps are part of the log of their run, so they are listed only for reviewers, while they wait for a review.
    """
    with_steps = may_review(caller) and job_filter.status == "human"
    visible = msgspec.structs.replace(job_filter, with_steps=with_steps)
    return visible if may_review(caller) else msgspec.structs.replace(visible, user_id=caller.user_id)


class JobEvent(Event, frozen=True, kw_only=True):
    """Event of a job as a caller may see it."""

    is_final: bool
    """True if the job has ended with it, so that no other event follows."""


async def list_events(services: Services, caller: Caller, job_id: str) -> list[JobEvent]:
    """Return the events of the job, oldest first. Raises JobNotFound.

    Callers who may not review see no data, and not who acted; reviewers see no ruling, and not the drafts of other
    voters.
    """
    job = await load_job(services, job_id)
    await get_job(services, caller, job_id)
    events = await services.store.jobs.events(job_id)
    if job.copy_of is not None and not sees_marks(caller, job):
        events = events_as_held(job, await services.store.jobs.events(job.copy_of), events)
    return [_as_seen_by(caller, job, event) for event in events]


def _as_seen_by(caller: Caller, job: Job, event: Event) -> JobEvent:
    event = event_as_seen_by(job, event, caller.email)
    members = msgspec.structs.asdict(event)
    if not may_review(caller):
        members |= {"data": {}, "actor": public_actor(caller, event.actor)}
    elif not sees_marks(caller, job):
        members["data"] = event_without_marks(event)
    return JobEvent(**members, is_final=event.data.get("status") in TERMINAL)


async def follow_events(
    services: Services, caller: Caller, job_id: str, after_seq: int
) -> AsyncGenerator[list[JobEvent]]:
    """Yield the events after `after_seq` as they happen, until the job has ended.

    Yield an empty list every `keep_alive_seconds` while nothing happens. The rights of `caller` are looked at again for
    each list. Raises JobNotFound, and Unauthorized once they are gone.
    """
    has_ended = False
    while not has_ended and not services.runtime.shutdown.is_interrupting:
        caller = await refresh(services, caller)
        events = await list_events(services, caller, job_id)
        has_ended = any(event.is_final for event in events)
        new = [event for event in events if event.seq > after_seq]
        after_seq = new[-1].seq if new else after_seq
        yield new
        if not has_ended:
            await wait_in_request(
                services, job_id, services.rules.keep_alive_seconds, lambda job, seq=after_seq: job.seq > seq
            )


async def load_job(services: Services, job_id: str) -> Job:
    """Return the job, not redacted: callers must not see it. Raises JobNotFound."""
    job = await services.store.jobs.get(job_id)
    if job is None:
        raise JobNotFound(f"The job {job_id} does not exist, or you may not see it.")
    return job


async def wait_in_request(services: Services, job_id: str, seconds: float, condition: Callable[[Job], bool]) -> Job:
    """Wait as `wait_until` does, for a caller on a connection: when the server stops, return the job as it is."""
    try:
        return await wait_until(services, job_id, seconds, condition)
    except asyncio.CancelledError:
        if services.runtime.shutdown.take_cancellation():
            return await load_job(services, job_id)
        raise


async def wait_until(services: Services, job_id: str, seconds: float, condition: Callable[[Job], bool]) -> Job:
    """Return the job as soon as `condition` is true of it, or as it is after `seconds`; not redacted.

    Raises JobNotFound.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    with services.runtime.watcher.watch(job_id) as change:
        while True:
            change.clear()
            job = await load_job(services, job_id)
            change.seq = job.seq
            if condition(job):
                return job
            try:
                async with asyncio.timeout_at(deadline):
                    await change.wait()
            except TimeoutError:
                return job


def require_success(job: Job) -> Job:
    """Return the job if it succeeded. Raises JobFailed; ReviewPending or JobPending if it has not ended."""
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
            raise JobPending(f"There is no answer yet; query job {job.id} later.", job_id=job.id)


def pending_error(job: Job) -> ReviewPending:
    """Return the error for a caller whose wait ended before the review of `job` or of one of its steps."""
    text = "The answer waits for a review"
    if job.parked_at is not None:
        text = "A step waits for a review or a limit"
    return ReviewPending(f"{text}; query job {job.id} later.", job_id=job.id)


def interrupted_error(job: Job) -> SignoffError:
    """Return the error for a caller whose wait for `job` ends because the server stops.

    A retry helps in any case: it joins a job that goes on, for example one that is held.
    """
    if job.status != "human" and job.parked_at is None:
        return Interrupted(job_id=job.id)
    error = pending_error(job)
    error.status, error.retryable, error.retry_after_seconds = Interrupted.status, True, None
    return error


def failure_of_job(job: Job) -> JobFailed:
    """Return the error for a caller who waited for `job`, which has failed."""
    return caller_error(job, job.error or WITHOUT_ANSWER)


def caller_error(job: Job, error: JobError) -> JobFailed:
    """Return `error` for a caller who waited for `job`."""
    return JobFailed(error.message, status=error.status, code=error.code, job_id=job.id)


def redacted(caller: Caller, job: Job) -> Job:
    """Return the job as `caller` may see it.

    Callers who may not review see no answer that is held, rejected or cancelled, nor its decision or usage. Nobody sees
    before the verdict why an answer is held, and reviewers do not see it afterwards. The author of a policy who may not
    review any more does not see the contents of its consultations: earlier versions stored answers of others there.
    """
    if not sees_marks(caller, job):
        job = without_marks(job)
    if job.is_consultation and not may_review(caller):
        return msgspec.structs.replace(job, body=b"null", response=None, error=None)
    if job.status not in {"human", "fail"} or may_review(caller):
        return job
    hidden = msgspec.structs.replace(job, response=None, draft=None, decision=None, usage=None)
    if job.round == 0:
        return hidden
    return msgspec.structs.replace(hidden, prompt_tokens=0, cached_tokens=0, completion_tokens=0, cost_nanodollars=None)
