"""Cancel: the owner does not want the answer any more."""

from __future__ import annotations

from signoff.core.access import Caller
from signoff.core.job import Job, JobError
from signoff.errors import Forbidden
from signoff.store import Step
from signoff.work.jobs.query import look, veiled
from signoff.work.services import Desk


async def cancel(desk: Desk, caller: Caller, job_id: str) -> Job:
    """The cancelled job; a running model is stopped within a second. Raises JobNotFound, Forbidden, Stale."""
    job = await look(desk, caller, job_id)
    if caller.role != "admin" and caller.user_id != job.user_id:
        raise Forbidden("Only its owner or an admin can cancel a job.")
    error = JobError(code="cancelled", message=f"Cancelled by {caller.email}.", status=409)
    step = Step(verb="cancel", actor=caller.actor, changes={"error": error})
    return veiled(caller, await desk.store.jobs.move(job_id, step))
