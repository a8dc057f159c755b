"""Settle: what becomes of a job once its model has answered, or has not."""

from __future__ import annotations

from typing import Any

from signoff.core.answer import Answer
from signoff.core.job import Job, JobError
from signoff.core.retry import wait_seconds
from signoff.errors import SignoffError, Stale
from signoff.store import Step
from signoff.work.inference.metering import columns_of
from signoff.work.services import Desk


async def settle(desk: Desk, job: Job, outcome: Answer | SignoffError) -> Job | None:
    """Moves the job on, with what it has taken. None if somebody else has it by now: then nothing changes."""
    step = _answered(desk, job, outcome) if isinstance(outcome, Answer) else _failed(desk, job, outcome)
    try:
        return await desk.store.jobs.move(job.id, step)
    except Stale:
        return None


def error_of(error: SignoffError) -> JobError:
    """The error as it is kept with the job."""
    return JobError(code=error.code, message=error.message, status=error.status)


def _answered(desk: Desk, job: Job, answer: Answer) -> Step:
    told = {"response": answer.body, "usage": answer.usage, "made": answer.made, "model": job.model}
    changes: dict[str, Any] = told | {"error": None, "attempt": job.attempt}
    if job.cache == "bypass" and job.cache_key is not None:  # as it was not, when it was asked for
        changes["cache"] = job.cache
    changes |= columns_of(job)
    deadline = job.policy.deadline_seconds
    after = {} if deadline is None or not job.policy.may_hold else {"review_deadline": deadline}
    verb = "hold" if job.policy.may_hold else "succeed"
    return Step(verb=verb, actor=desk.actor, lease=job.lease, changes=changes, after_seconds=after)


def _failed(desk: Desk, job: Job, error: SignoffError) -> Step:
    changes = {"error": error_of(error), "attempt": job.attempt} | columns_of(job)
    is_last = job.lane == "now" and job.parent_id is None  # whoever waits asks again by themselves
    if is_last or not error.retryable or job.attempt >= job.max_attempts:
        return Step(verb="fail", actor=desk.actor, lease=job.lease, changes=changes)
    wait = wait_seconds(desk.rules.backoff, job.attempt, desk.dice(), error.retry_after_seconds)
    return Step(verb="retry", actor=desk.actor, lease=job.lease, changes=changes, after_seconds={"due_at": wait})
