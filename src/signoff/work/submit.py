"""Submission: store a queued job (the `later` lane). The job is committed before its caller gets an id."""

from signoff.core.ask import Ask
from signoff.core.job import Job
from signoff.errors import IdTaken, KeyReused
from signoff.runtime.backlogs import BacklogSlot
from signoff.work.admit import admit
from signoff.work.inference.caching import lookup_answer
from signoff.work.jobs.backlog import reserve_slot
from signoff.work.jobs.query import redacted
from signoff.work.services import Services


async def submit(services: Services, ask: Ask) -> Job:
    """Store the job of `ask` and wake a worker; return the job as its caller may see it.

    Where a job of this user has the same client id and door, or idempotency key, return that one instead, also beyond
    the bounds of the backlog.
    Raises IdTaken or KeyReused if that job has another request, BacklogFull, and all that `admit` raises.
    """
    job = await admit(services, ask)
    hit = await lookup_answer(services, ask, job)
    if hit is None:
        stored = await _insert(services, ask, job)
    else:
        stored = await services.store.jobs.insert(hit, actor=ask.caller.actor, verb="hit")
    if stored.id != job.id:
        check_same(stored, job)
    elif ask.due_seconds <= 0 and hit is None:
        services.adapters.broker.notify(stored.id, stored.priority)
    return redacted(ask.caller, stored)


async def _insert(services: Services, ask: Ask, job: Job) -> Job:
    slot = await reserve_slot(services, job)
    if not isinstance(slot, BacklogSlot):
        return slot
    with slot:
        return await services.store.jobs.insert(job, actor=ask.caller.actor, due_seconds=ask.due_seconds)


def check_same(stored: Job, job: Job) -> None:
    """Check that both jobs have the same request. Raises IdTaken or KeyReused if they do not."""
    if stored.fingerprint == job.fingerprint:
        return
    if job.client_id is not None and (stored.client_id, stored.door) == (job.client_id, job.door):
        raise IdTaken(f"`job_id` {job.client_id!r} was used with another request; send a new one.", job_id=stored.id)
    raise KeyReused(f"`Idempotency-Key` {job.idempotency_key!r} was used with another request; send a new one.")
