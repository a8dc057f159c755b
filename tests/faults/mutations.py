"""Mutations: each removes one protection from the real code, and the checker must detect it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import msgspec

from signoff.core.job import Job
from signoff.core.transitions import TRANSITIONS, Guard
from signoff.store import TransitionRequest
from signoff.stores import jobs, sqlite, transitions
from signoff.stores.jobs import SqlJobs
from signoff.work.jobs import query


def without_the_lease_guard() -> None:
    """Let a worker settle a job after its lease has run out."""
    for verb in ("succeed", "hold", "fail", "retry"):
        _unguard(verb, Guard.LEASE)


def without_the_round_guard() -> None:
    """Apply a verdict to the current round, even if the reviewer saw an earlier one."""
    _unguard("decide", Guard.ROUND)


def without_the_write_lock() -> None:
    """Let several processes write to the SQLite file at once."""
    _replace(sqlite, "_wait_for_lock", lambda file: None)


def with_a_late_delivery() -> None:
    """Write the delivery in a separate transaction, after the one that ends the job."""
    create_deliveries, transition = transitions.create_deliveries, SqlJobs.transition

    async def transition_then_deliver(self: SqlJobs, job_id: str, *steps: TransitionRequest) -> Job:
        job = await transition(self, job_id, *steps)
        await self._database.write(lambda tx: create_deliveries(tx, job, steps[-1].verb))
        return job

    for module in (transitions, jobs):
        _replace(module, "create_deliveries", lambda tx, job, verb: None)
    _replace(SqlJobs, "transition", transition_then_deliver)


def with_an_early_acknowledgement() -> None:
    """Accept a job before it is committed."""
    insert = SqlJobs.insert
    tasks = set[asyncio.Task[Any]]()

    async def insert_in_background(self: SqlJobs, job: Job, **options: Any) -> Job:
        if job.idempotency_key is not None or job.lane == "now":
            return await insert(self, job, **options)
        task = asyncio.ensure_future(_later(insert(self, job, **options)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return job

    _replace(SqlJobs, "insert", insert_in_background)


def without_redaction() -> None:
    """Show held answers to every caller."""
    _replace(query, "redacted", lambda caller, job: job)


def without_keys() -> None:
    """Store idempotency keys without checking whether they were used."""
    _replace(jobs, "_find_by_key", lambda tx, job: None)
    _replace(jobs, "_add_unique_keys", lambda tx, job: job)


def with_process_clock() -> None:
    """Compare times with the process's clock instead of the database's."""
    _replace(sqlite, "clock_of", lambda conn: lambda: time.time_ns() // 1000)


async def _later(insertion: Any) -> Any:
    await asyncio.sleep(0.2)
    return await insertion


def _replace(owner: Any, name: str, value: Any) -> None:
    """Replace an attribute for good. Raises AttributeError if there is none, so that a mutation always mutates."""
    mock.patch.object(owner, name, value).start()


def _unguard(verb: str, guard: Guard) -> None:
    guards = tuple(other for other in TRANSITIONS[verb].guards if other is not guard)
    if guards == TRANSITIONS[verb].guards:
        raise AttributeError(f"The transition {verb!r} has no guard {guard.name}.")
    TRANSITIONS[verb] = msgspec.structs.replace(TRANSITIONS[verb], guards=guards)


MUTATIONS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "no-lease-guard": without_the_lease_guard,
    "no-round-guard": without_the_round_guard,
    "no-write-lock": without_the_write_lock,
    "late-delivery": with_a_late_delivery,
    "early-acknowledgement": with_an_early_acknowledgement,
    "no-veil": without_redaction,
    "no-keys": without_keys,
    "own-clock": with_process_clock,
}
