"""Sweep: what time brings about. Any number of processes may sweep at once; every move is guarded."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from signoff.core.job import INTERRUPTED, Decision, Job, JobError
from signoff.errors import JobNotFound, Stale
from signoff.store import Step
from signoff.work.inference.caching import remember
from signoff.work.reviews.desk import effect
from signoff.work.services import Desk

AT_ONCE = 100
FORGOTTEN_AT_ONCE = 500
BREATH_SECONDS = 0.05
DAY_SECONDS = 24 * 3600
log = structlog.get_logger()


async def sweep_for_ever(desk: Desk) -> None:
    """Sweeps every few seconds."""
    while True:
        try:
            await sweep(desk)
        except Exception as error:  # noqa: BLE001 -- the store is away; the next sweep may find it
            log.warning("a sweep failed", error=repr(error))
        await asyncio.sleep(desk.rules.sweep_seconds)


async def sweep(desk: Desk) -> None:
    """One sweep: lost leases, due verdicts, reviews that nobody did in time, runs that nobody woke, old jobs."""
    for job in await desk.store.jobs.lapsed(AT_ONCE):
        await _move(desk, job, _lapse(desk, job))
    for job in await desk.store.jobs.released(AT_ONCE):
        if job.decision is not None:
            await _move(desk, job, effect(job, job.decision, desk.actor))
    for job in await desk.store.jobs.overdue(AT_ONCE):
        await _move(desk, job, *_expire(desk, job))
    for run in await desk.store.runs.forgotten(AT_ONCE):
        await _move(desk, run, Step(verb="wake", actor=desk.actor, after_seconds={"due_at": 0}))
    if desk.rules.retention_days is not None:
        await _forget(desk, desk.rules.retention_days * DAY_SECONDS)


async def _forget(desk: Desk, older_than_seconds: float) -> None:
    """Forgets old jobs, a batch after another with room for others between them, until the next sweep is due."""
    clock = asyncio.get_running_loop().time
    until = clock() + desk.rules.sweep_seconds
    while clock() < until:
        if await desk.store.jobs.purge(older_than_seconds, FORGOTTEN_AT_ONCE) < FORGOTTEN_AT_ONCE:
            return
        await asyncio.sleep(BREATH_SECONDS)


async def _move(desk: Desk, job: Job, *steps: Step) -> None:
    with contextlib.suppress(Stale, JobNotFound):  # another process was faster
        moved = await desk.store.jobs.move(job.id, *steps)
        remember(desk, moved)
        if moved.status == "bot":
            desk.broker.ring(moved.id, moved.priority)


def _lapse(desk: Desk, job: Job) -> Step:
    if job.lane == "now":
        error = INTERRUPTED
    elif job.attempt >= job.max_attempts:
        text = f"The worker vanished, {job.attempt} times; the last error: {job.error.message if job.error else 'none'}"
        error = JobError(code="attempts_exhausted", message=text, status=502)
    else:
        return Step(verb="lapse", actor=desk.actor, to="bot", lease=job.lease, after_seconds={"due_at": 0})
    return Step(verb="lapse", actor=desk.actor, to="fail", lease=job.lease, changes={"error": error})


def _expire(desk: Desk, job: Job) -> list[Step]:
    match job.policy.on_deadline:
        case "stay":
            return [Step(verb="expire", actor=desk.actor, to="human")]
        case "approve":
            decision = Decision(verdict="approve", reviewer="policy", reason="Nobody looked in time.")
            return [Step(verb="expire", actor=desk.actor, to="success", changes={"decision": decision})]
        case "reject":
            error = JobError(code="expired", message="Nobody looked at the answer in time.", status=403)
            return [Step(verb="expire", actor=desk.actor, to="fail", changes={"error": error})]
