"""Sweep: what time brings about. Any number of processes may sweep at once; every move is guarded."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from signoff.core.job import INTERRUPTED, Decision, Job, JobError
from signoff.errors import JobNotFound, Stale
from signoff.store import TransitionRequest
from signoff.work.inference.caching import store_answer
from signoff.work.reviews.desk import verdict_transition
from signoff.work.services import Services

AT_ONCE = 100
FORGOTTEN_AT_ONCE = 500
BREATH_SECONDS = 0.05
DAY_SECONDS = 24 * 3600
log = structlog.get_logger()


async def run_sweeper(services: Services) -> None:
    """Sweeps every few seconds."""
    while True:
        try:
            await sweep(services)
        except Exception as error:  # noqa: BLE001 -- the store is away; the next sweep may find it
            log.warning("a sweep failed", error=repr(error))
        await asyncio.sleep(services.rules.sweep_seconds)


async def sweep(services: Services) -> None:
    """One sweep: lost leases, due verdicts, reviews that nobody did in time, runs that nobody woke, old jobs."""
    for job in await services.store.jobs.lapsed(AT_ONCE):
        await _move(services, job, _lapse(services, job))
    for job in await services.store.jobs.released(AT_ONCE):
        if job.decision is not None:
            await _move(services, job, verdict_transition(job, job.decision, services.ids.actor))
    for job in await services.store.jobs.overdue(AT_ONCE):
        await _move(services, job, *_expire(services, job))
    for run in await services.store.runs.stalled(AT_ONCE):
        await _move(
            services, run, TransitionRequest(verb="wake", actor=services.ids.actor, after_seconds={"due_at": 0})
        )
    if services.rules.retention_days is not None:
        await _purge(services, services.rules.retention_days * DAY_SECONDS)


async def _purge(services: Services, older_than_seconds: float) -> None:
    """Forgets old jobs, a batch after another with room for others between them, until the next sweep is due."""
    clock = asyncio.get_running_loop().time
    until = clock() + services.rules.sweep_seconds
    while clock() < until:
        if await services.store.jobs.purge(older_than_seconds, FORGOTTEN_AT_ONCE) < FORGOTTEN_AT_ONCE:
            return
        await asyncio.sleep(BREATH_SECONDS)


async def _move(services: Services, job: Job, *steps: TransitionRequest) -> None:
    with contextlib.suppress(Stale, JobNotFound):  # another process was faster
        moved = await services.store.jobs.transition(job.id, *steps)
        store_answer(services, moved)
        if moved.status == "bot":
            services.adapters.broker.notify(moved.id, moved.priority)


def _lapse(services: Services, job: Job) -> TransitionRequest:
    if job.lane == "now":
        error = INTERRUPTED
    elif job.attempt >= job.max_attempts:
        text = f"The worker vanished, {job.attempt} times; the last error: {job.error.message if job.error else 'none'}"
        error = JobError(code="attempts_exhausted", message=text, status=502)
    else:
        return TransitionRequest(
            verb="lapse", actor=services.ids.actor, to="bot", lease=job.lease, after_seconds={"due_at": 0}
        )
    return TransitionRequest(
        verb="lapse", actor=services.ids.actor, to="fail", lease=job.lease, changes={"error": error}
    )


def _expire(services: Services, job: Job) -> list[TransitionRequest]:
    match job.policy.on_deadline:
        case "stay":
            return [TransitionRequest(verb="expire", actor=services.ids.actor, to="human")]
        case "approve":
            decision = Decision(verdict="approve", reviewer="policy", reason="Nobody looked in time.")
            return [
                TransitionRequest(verb="expire", actor=services.ids.actor, to="success", changes={"decision": decision})
            ]
        case "reject":
            error = JobError(code="expired", message="Nobody looked at the answer in time.", status=403)
            return [TransitionRequest(verb="expire", actor=services.ids.actor, to="fail", changes={"error": error})]
