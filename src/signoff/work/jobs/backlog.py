"""The backlog of a caller: which new jobs have a place in it."""

from signoff.core.job import Job
from signoff.errors import BacklogFull
from signoff.runtime.backlogs import BacklogSlot
from signoff.work.services import Services


async def reserve_slot(services: Services, job: Job) -> BacklogSlot | Job:
    """Reserve a slot for `job`, within whose context it is stored.

    If there is none, return the job that has the client id or the idempotency key of `job`, and needs no slot.
    Raises BacklogFull if there is no such job either.
    """
    try:
        return await services.runtime.backlogs.reserve(job.user_id, len(job.body) + len(job.metadata))
    except BacklogFull:
        has_key = job.client_id is not None or job.idempotency_key is not None
        existing = await services.store.jobs.existing(job) if has_key else None
        if existing is None:
            raise
        return existing
