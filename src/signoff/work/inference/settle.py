"""Settlement: the transition of a job once its model has answered or failed."""

from collections.abc import Mapping
from typing import Any

import msgspec

from signoff.core.dialects.answer import Answer
from signoff.core.job import Job, JobError
from signoff.core.retry import wait_seconds
from signoff.core.reviews.ruling import Ruling
from signoff.core.reviews.strictness import deadline_of
from signoff.errors import PassLapsed, SignoffError, Stale
from signoff.store import TransitionRequest
from signoff.work.inference.metering import usage_columns
from signoff.work.reviews.budget import held_without_pass, plant_beside
from signoff.work.reviews.held import without_absent_assignee
from signoff.work.services import Services

NOT_ANSWERED = "The model gave no answer to the policy."
REJECTED = "The policy of the server rejected the answer."


async def settle(services: Services, job: Job, outcome: Answer | SignoffError) -> Job | None:
    """Make the transition that `outcome` leads to, and store the usage of `job`; return None if the lease was lost."""
    request = _on_answer(services, job, outcome) if isinstance(outcome, Answer) else _on_failure(services, job, outcome)
    if job.is_consultation:
        request = msgspec.structs.replace(request, changes={**request.changes, **_without_words(request.changes)})
    elif request.verb == "hold":
        absent = await without_absent_assignee(services, job)
        request = msgspec.structs.replace(request, changes={**request.changes, **absent})
    try:
        settled = await services.store.jobs.transition(job.id, request)
    except PassLapsed:
        return await settle(services, held_without_pass(job), outcome)
    except Stale:
        return None
    if settled.status == "human":
        await plant_beside(services, settled)
    return settled


def _without_words(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes of a consultation that replace texts, which may quote what another user sent or got."""
    error: JobError | None = changes["error"]
    return {"response": None, "error": error and msgspec.structs.replace(error, message=NOT_ANSWERED)}


def job_error(error: SignoffError) -> JobError:
    """Return `error` as stored with a job."""
    param = msgspec.UNSET if error.param is None else error.param
    return JobError(code=error.code, message=error.message, status=error.status, param=param)


def _on_answer(services: Services, job: Job, answer: Answer) -> TransitionRequest:
    changes: dict[str, Any] = {
        "response": None if answer.is_unwritten else answer.body,
        "usage": answer.usage,
        "upstream_object_id": answer.upstream_object_id,
        "model": job.model,
        "error": None,
        "attempt": job.attempt,
    }
    if job.cache == "bypass" and job.cache_key is not None:  # changed by `revalidate` since admission
        changes["cache"] = job.cache
    changes |= usage_columns(job)
    ruling = job.ruling
    if ruling is None and job.policy.may_hold:  # an answer without a ruling may leave only by a verdict
        ruling = Ruling(outcome="hold")
    if ruling is None:
        return TransitionRequest(verb="succeed", actor=services.ids.actor, lease=job.lease, changes=changes)
    changes |= {"policy": job.policy, "ruling": ruling}  # the policy may have become stricter since admission
    match ruling.outcome:
        case "pass":
            return TransitionRequest(verb="succeed", actor=services.ids.actor, lease=job.lease, changes=changes)
        case "reject":
            changes["error"] = JobError(code=ruling.code or "rejected", message=ruling.message or REJECTED, status=403)
            return TransitionRequest(verb="fail", actor=services.ids.actor, lease=job.lease, changes=changes)
        case "hold":
            return _on_hold(services, job, ruling, changes)


def _on_hold(services: Services, job: Job, ruling: Ruling, changes: dict[str, Any]) -> TransitionRequest:
    """Return the transition that puts the answer on the desk."""
    changes |= {
        "review_queue": ruling.queue,
        "review_priority": job.priority if ruling.priority is None else ruling.priority,
    }
    seconds = deadline_of(ruling, job.policy).seconds
    after = {"held_at": 0.0} if seconds is None else {"held_at": 0.0, "review_deadline": seconds}
    return TransitionRequest(
        verb="hold", actor=services.ids.actor, lease=job.lease, changes=changes, after_seconds=after
    )


def _on_failure(services: Services, job: Job, error: SignoffError) -> TransitionRequest:
    changes = {"error": job_error(error), "attempt": job.attempt} | usage_columns(job)
    is_waiting_call = job.lane == "now" and job.parent_id is None  # a waiting client retries itself
    if is_waiting_call or not error.retryable or job.attempt >= job.max_attempts:
        return TransitionRequest(verb="fail", actor=services.ids.actor, lease=job.lease, changes=changes)
    wait = wait_seconds(services.rules.backoff, job.attempt, services.ids.random_float(), error.retry_after_seconds)
    after = {"due_at": wait}
    return TransitionRequest(
        verb="retry", actor=services.ids.actor, lease=job.lease, changes=changes, after_seconds=after
    )
