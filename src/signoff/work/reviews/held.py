"""Held answers: who may see them on the desk, and who may decide on them."""

from signoff.core.access import Caller, check_may_review, may_review
from signoff.core.job import Job
from signoff.core.reviews.queues import ALL_REVIEWERS, MAX_QUEUES
from signoff.core.reviews.votes import as_seen_by
from signoff.errors import Forbidden, Stale
from signoff.work.jobs.query import load_job
from signoff.work.services import Services

# Largest number of queues among which the next answer to review is looked for.
MAX_QUEUES_READ = 100


async def load_held(services: Services, caller: Caller, job_id: str) -> Job:
    """Return a held job in a queue of `caller`, as they may see it.

    Raises Forbidden, JobNotFound, and Stale with the reason if the job is not held.
    """
    check_may_review(caller)
    job = await load_job(services, job_id)
    if job.status != "human":
        raise Stale(f"The job is {job.status}, not in review{await _reason_of_end(services, job)}.", job_id=job_id)
    if not await _is_theirs(services, caller, job):
        raise Forbidden(f"The answer is in the review queue {job.review_queue!r}, which you do not belong to.")
    return as_seen_by(job, caller.email)


async def _reason_of_end(services: Services, job: Job) -> str:
    """Return who decided last, or the error of a job that ended otherwise, as the end of a sentence."""
    if job.error is not None and job.error.code in {"cancelled", "expired"}:
        return f"; {job.error.message.rstrip('.')}"
    if job.decision is not None:
        return f"; {job.decision.reviewer} decided: {job.decision.verdict}"
    decisions = await services.store.reviews.decisions([job.id])
    if not decisions:
        return ""
    last = decisions[-1]
    return f"; {last.decision.reviewer} decided in round {last.round}: {last.decision.verdict}"


async def _is_theirs(services: Services, caller: Caller, job: Job) -> bool:
    if caller.role == "admin" or job.review_queue in {None, ALL_REVIEWERS} or job.assignee == caller.email:
        return True
    return job.review_queue in await services.caches.reviewers.queues_of(caller.email)


async def queues_of(services: Services, caller: Caller) -> list[str]:
    """Return the names of the queues of `caller`, of an admin those with held answers; that of all reviewers always."""
    check_may_review(caller)
    if caller.role == "admin":
        names = await services.store.reviews.held_queues(MAX_QUEUES)
    else:
        names = await services.caches.reviewers.queues_of(caller.email)
    return sorted({ALL_REVIEWERS, *names})[:MAX_QUEUES_READ]


async def check_queue_of(services: Services, caller: Caller, queue: str) -> None:
    """Raise Forbidden unless `caller` belongs to `queue`."""
    check_may_review(caller)
    if caller.role == "admin" or queue == ALL_REVIEWERS:
        return
    if queue not in await services.caches.reviewers.queues_of(caller.email):
        raise Forbidden(f"You do not belong to the review queue {queue!r}.")


async def without_absent_assignee(services: Services, job: Job) -> dict[str, None]:
    """Return the change of `job` that lets others review it, if its assignee may review no more; else nothing."""
    user = None if job.assignee is None else await services.store.people.user(job.assignee)
    is_present = job.assignee is None or (user is not None and may_review(user))
    return {} if is_present else {"assignee": None}


def is_free(job: Job, caller: Caller, now: int) -> bool:
    """Return True unless another reviewer has the held job open at `now`, or it is assigned to one."""
    is_open = job.review_lease not in {None, caller.email} and (job.review_lease_until or 0) >= now
    return not is_open and job.assignee in {None, caller.email}


def check_undecided(job: Job) -> None:
    """Raise Stale with the name of the reviewer who has decided, if a verdict on `job` waits to take effect."""
    if job.release_at is not None and job.decision is not None:
        raise Stale(f"{job.decision.reviewer} decided: {job.decision.verdict}.", job_id=job.id)


async def check_current(services: Services, job: Job, review_round: int) -> None:
    """Raise Stale unless `review_round` is the round of the held `job`, and nobody has decided in it.

    The message names the reviewer who has.
    """
    check_undecided(job)
    if review_round == job.round:
        return
    records = await services.store.reviews.decisions([job.id])
    decision = next((each.decision for each in records if each.round == review_round), None)
    decided = "" if decision is None else f"{decision.reviewer} decided: {decision.verdict}; "
    raise Stale(
        f"{decided}this is round {job.round}, not {review_round}; get the job again, and review its present answer.",
        job_id=job.id,
    )


async def check_not_own(services: Services, caller: Caller, job: Job) -> None:
    """Raise Forbidden if `caller` would decide on an answer to a request of their own."""
    if job.user_id == await user_left_out(services, caller):
        raise Forbidden(
            "You asked for this answer yourself; another reviewer must decide on it (setting `allow_self_review`)."
        )


async def user_left_out(services: Services, caller: Caller) -> int | None:
    """Return the id of the user whose requests `caller` may not decide on: their own; None if they may.

    Requests of anonymous callers and of commands belong to no user. If `allow_self_review` is not set, users may decide
    on their own requests as long as they are the only reviewer.
    """
    is_allowed = services.rules.allow_self_review
    if caller.user_id <= 0 or is_allowed:
        return None
    if is_allowed is None and await services.caches.reviewers.is_only_reviewer(caller.user_id):
        return None
    return caller.user_id
