"""Cancel: the owner does not want the answer any more."""

from __future__ import annotations

from signoff.core.access import Caller
from signoff.core.job import Job, JobError
from signoff.errors import Forbidden
from signoff.store import TransitionRequest
from signoff.work.jobs.query import get_job, redacted
from signoff.work.services import Services


async def cancel(services: Services, caller: Caller, job_id: str) -> Job:
    """The cancelled job; a running model is stopped within a second. Raises JobNotFound, Forbidden, Stale."""
    job = await get_job(services, caller, job_id)
    if caller.role != "admin" and caller.user_id != job.user_id:
        raise Forbidden("Only its owner or an admin can cancel a job.")
    error = JobError(code="cancelled", message=f"Cancelled by {caller.email}.", status=409)
    step = TransitionRequest(verb="cancel", actor=caller.actor, changes={"error": error})
    return redacted(caller, await services.store.jobs.transition(job_id, step))
