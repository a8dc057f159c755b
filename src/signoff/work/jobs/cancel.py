"""Cancellation: end a job whose answer is not needed any more."""

from signoff.core.access import Caller, may_review
from signoff.core.job import Job, JobError
from signoff.errors import Forbidden, Stale
from signoff.store import TransitionRequest
from signoff.work.jobs.query import get_job, redacted
from signoff.work.services import Services


async def cancel(services: Services, caller: Caller, job_id: str) -> Job:
    """Cancel the job, and return it; its model is stopped within a second. Raises JobNotFound, Forbidden, Stale."""
    job = await get_job(services, caller, job_id)
    if caller.role != "admin" and caller.user_id != job.user_id:
        raise Forbidden("Only the owner of a job or an admin may cancel it.")
    by = caller.email if caller.user_id == job.user_id else "an admin"
    error = JobError(code="cancelled", message=f"Cancelled by {by}.", status=409)
    request = TransitionRequest(verb="cancel", actor=caller.actor, changes={"error": error})
    try:
        return redacted(caller, await services.store.jobs.transition(job_id, request))
    except Stale:
        if may_review(caller):
            raise
        status = (await get_job(services, caller, job_id)).status
        # The message of the store names the reviewer, whom this caller must not know.
        raise Stale(f"The job is {status}; `cancel` is not possible now.", job_id=job_id) from None
