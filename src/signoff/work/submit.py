"""Submit: the later lane. The job is committed before anybody is told that it was accepted."""

from __future__ import annotations

from signoff.core.ask import Ask
from signoff.core.job import Job
from signoff.errors import IdTaken, KeyReused
from signoff.work.admit import admit
from signoff.work.inference.caching import lookup_answer
from signoff.work.jobs.query import redacted
from signoff.work.services import Services


async def submit(services: Services, ask: Ask) -> Job:
    """The job, durable; or the one that already has the same own id or idempotency key, as its caller may see it.

    Raises IdTaken, KeyReused when that one has another body, and what `admit` raises.
    """
    asked = await admit(services, ask)
    hit = await lookup_answer(services, ask, asked)
    new, verb = (asked, "submit") if hit is None else (hit, "hit")
    job = await services.store.jobs.insert(new, actor=ask.caller.actor, verb=verb, due_seconds=ask.due_seconds)
    if job.id != asked.id:
        check_same(job, asked)
    elif ask.due_seconds <= 0 and hit is None:
        services.adapters.broker.notify(job.id, job.priority)
    return redacted(ask.caller, job)


def check_same(standing: Job, asked: Job) -> None:
    """Raises IdTaken or KeyReused unless both ask the same."""
    if standing.fingerprint == asked.fingerprint:
        return
    if asked.client_id is not None and standing.client_id == asked.client_id:
        raise IdTaken(f"The job id {asked.client_id!r} was used with another request.", job_id=standing.id)
    raise KeyReused(f"The idempotency key {asked.idempotency_key!r} was used with another request.")
