"""Review leases: a held answer is open for one reviewer at a time, and moves between reviewers and queues."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from signoff.core.access import Caller, check_may_review, may_review
from signoff.core.job import Job
from signoff.core.reviews.queues import ALL_REVIEWERS, NextReview, ReviewFilter
from signoff.core.reviews.votes import votes_needed
from signoff.errors import BadRequest, Forbidden, JobNotFound, Stale
from signoff.store import TransitionRequest
from signoff.work.reviews.held import (
    MAX_QUEUES_READ,
    check_queue_of,
    check_undecided,
    is_free,
    load_held,
    queues_of,
    user_left_out,
)
from signoff.work.services import Services

LockAction = Literal["open", "renew", "leave"]
LOCK_SECONDS = 300.0
MAX_SKIPPED = 200


async def take_next(services: Services, caller: Caller, queue: str | None, skip: Sequence[str]) -> Job | None:
    """Open the next answer for `caller`, in one queue or in all of theirs, and return its job; None if none is left.

    Answers that are assigned to the caller come first, then by priority, deadline and age. Those that somebody has
    open, that the caller has voted on or asked for, and those in `skip` are left out. Raises Forbidden, BadRequest.
    """
    check_may_review(caller)
    if len(skip) > MAX_SKIPPED:
        raise BadRequest(f"`skip` must have at most {MAX_SKIPPED} ids (got {len(skip)}).")
    if queue is not None:
        await check_queue_of(services, caller, queue)
    queues = [queue] if queue is not None else (await queues_of(services, caller))[:MAX_QUEUES_READ]
    query = NextReview(
        reviewer=caller.email,
        queues=tuple(queues),
        not_user_id=await user_left_out(services, caller),
        skip=tuple(skip),
    )
    return await services.store.reviews.open_next(query, actor=caller.actor, lease_seconds=LOCK_SECONDS)


async def take_first(services: Services, caller: Caller, filters: ReviewFilter, skip: Sequence[str]) -> Job | None:
    """Open the first free answer of a list for `caller`, and return its job; None if the page of `filters` has none.

    What `take_next` leaves out is left out here too. The queues of `filters` must be those of the caller.
    """
    left_out, now = await user_left_out(services, caller), services.clock()
    for job in await services.store.reviews.list(filters):
        if job.id in skip or job.user_id == left_out or not is_free(job, caller, now):
            continue
        if await _has_voted(services, caller, job):
            continue
        with contextlib.suppress(Stale, Forbidden, JobNotFound):  # somebody else was faster
            return await lock_for_review(services, caller, job.id, "open")
    return None


async def _has_voted(services: Services, caller: Caller, job: Job) -> bool:
    if votes_needed(job) == 1:
        return False
    votes = await services.store.reviews.votes(job.id, job.round)
    return any(vote.decision.reviewer == caller.email for vote in votes)


async def lock_for_review(services: Services, caller: Caller, job_id: str, action: LockAction) -> Job:
    """Open a held job for `caller` for LOCK_SECONDS, renew that, or leave it; others cannot decide on an open job.

    To leave a job that the caller has not open changes nothing. Raises Forbidden, JobNotFound, Stale.
    """
    job = await load_held(services, caller, job_id)
    if action == "leave" and job.review_lease != caller.email:
        return job
    changes = {"review_lease": caller.email} if action == "open" else {}
    after = {} if action == "leave" else {"review_lease_until": LOCK_SECONDS}
    request = _transition(action, caller, job, changes, after)
    return await services.store.jobs.transition(job_id, request)


async def assign(services: Services, caller: Caller, job_id: str, assignee: str | None, queue: str | None) -> Job:
    """Assign a held job to a reviewer, or to nobody if `assignee` is None, and move it to `queue` unless that is None.

    Raises Forbidden, JobNotFound, Stale, and BadRequest if the assignee cannot review it.
    """
    job = await load_held(services, caller, job_id)
    new_queue = job.review_queue or ALL_REVIEWERS
    if queue is not None:
        await _check_exists(services, queue)
        new_queue = queue
    if assignee is not None:
        assignee = assignee.lower()
        await _check_assignee(services, job, assignee, new_queue)
    changes = {"assignee": assignee, "review_queue": new_queue or None}
    moved = {} if new_queue == (job.review_queue or ALL_REVIEWERS) else {"escalated_at": 0.0}
    return await services.store.jobs.transition(job_id, _transition("assign", caller, job, changes, moved))


async def escalate(services: Services, caller: Caller, job_id: str, queue: str, reason: str | None) -> Job:
    """Move a held job to `queue`, for its members to decide, with a reason for them.

    Raises Forbidden, JobNotFound, Stale, and BadRequest if there is no such queue.
    """
    job = await load_held(services, caller, job_id)
    await _check_exists(services, queue)
    if queue == (job.review_queue or ALL_REVIEWERS):
        raise BadRequest(f"`queue` is the queue of this answer already ({queue!r}); name another one.")
    request = _transition(
        "escalate", caller, job, {"review_queue": queue or None, "assignee": None}, {"escalated_at": 0.0}
    )
    request = msgspec.structs.replace(request, note={} if reason is None else {"reason": reason})
    return await services.store.jobs.transition(job_id, request)


async def _check_exists(services: Services, queue: str) -> None:
    if queue != ALL_REVIEWERS and await services.store.review_queues.get(queue) is None:
        raise BadRequest(f"`queue` {queue!r} does not exist; an admin creates it with PUT /api/review-queues/{queue}.")


async def _check_assignee(services: Services, job: Job, assignee: str, queue: str) -> None:
    user = await services.store.people.user(assignee)
    if user is None or not may_review(user):
        raise BadRequest(f"`assignee` {assignee!r} is not an active reviewer or admin.")
    if user.id == job.user_id and services.rules.allow_self_review is not True:
        raise BadRequest(f"`assignee` {assignee!r} asked for this answer; assign it to somebody else.")
    is_member = queue == ALL_REVIEWERS or queue in await services.store.review_queues.of_member(user.email)
    if user.role != "admin" and not is_member:
        raise BadRequest(f"`assignee` {assignee!r} does not belong to the review queue {queue!r}.")


def _transition(
    verb: str,
    caller: Caller,
    job: Job,
    changes: Mapping[str, object] | None = None,
    after_seconds: Mapping[str, float] | None = None,
) -> TransitionRequest:
    check_undecided(job)
    return TransitionRequest(
        verb=verb,
        actor=caller.actor,
        round=job.round,
        reviewer=caller.email,
        changes=changes or {},
        after_seconds=after_seconds or {},
    )
