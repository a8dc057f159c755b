"""Submit: the later lane. The job is committed before anybody is told that it was accepted."""

from __future__ import annotations

from signoff.core.ask import Ask
from signoff.core.job import Job
from signoff.errors import IdTaken, KeyReused
from signoff.work.admit import admit
from signoff.work.inference.caching import recalled
from signoff.work.jobs.query import veiled
from signoff.work.services import Desk


async def submit(desk: Desk, ask: Ask) -> Job:
    """The job, durable; or the one that already has the same own id or idempotency key, as its caller may see it.

    Raises IdTaken, KeyReused when that one has another body, and what `admit` raises.
    """
    asked = await admit(desk, ask)
    hit = await recalled(desk, ask, asked)
    new, verb = (asked, "submit") if hit is None else (hit, "hit")
    job = await desk.store.jobs.insert(new, actor=ask.caller.actor, verb=verb, due_seconds=ask.due_seconds)
    if job.id != asked.id:
        check_same(job, asked)
    elif ask.due_seconds <= 0 and hit is None:
        desk.broker.ring(job.id, job.priority)
    return veiled(ask.caller, job)


def check_same(standing: Job, asked: Job) -> None:
    """Raises IdTaken or KeyReused unless both ask the same."""
    if standing.fingerprint == asked.fingerprint:
        return
    if asked.own_id is not None and standing.own_id == asked.own_id:
        raise IdTaken(f"The job id {asked.own_id!r} was used with another request.", job_id=standing.id)
    raise KeyReused(f"The idempotency key {asked.idempotency_key!r} was used with another request.")
