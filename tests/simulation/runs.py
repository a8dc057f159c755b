"""In-memory runs of pipelines: their steps and function calls."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from signoff.core.job import FunctionCall, Job
from signoff.core.usage import UsageTotals, totals_of
from signoff.errors import Stale
from signoff.store import TransitionRequest
from signoff.stores.jobs import with_times
from simulation.jobs import MemoryJobs
from simulation.tables import Connection, Tables, Tx
from simulation.usage import plus


class MemoryRuns:
    """In-memory implementation of `records.Runs`."""

    def __init__(self, tables: Tables, connection: Connection, jobs: MemoryJobs) -> None:
        self._tables = tables
        self._connection = connection
        self._jobs = jobs

    async def add_step(self, step: Job, *, actor: str, run_lease: str, lease_seconds: float) -> Job:
        def add(tx: Tx) -> Job:
            run = self._leased_run(step.parent_id, run_lease)
            key = (step.parent_round, step.node)
            of_run = [job for job in self._tables.jobs.values() if job.parent_id == run.id]
            existing = next((job for job in of_run if (job.parent_round, job.node) == key), None)
            verb, seconds = ("hit", None) if step.is_terminal else ("submit", lease_seconds)
            return existing or self._jobs.add_job(tx, with_times(step, tx.now, 0, seconds), verb, actor)

        return await self._connection.send(add, writes=True)

    async def steps(self, run_id: str, run_round: int | None = None) -> list[Job]:
        def read(_: Tx) -> list[Job]:
            steps = [
                job
                for job in self._tables.jobs.values()
                if job.parent_id == run_id and run_round in {None, job.parent_round}
            ]
            return sorted(steps, key=lambda job: job.id)

        return await self._connection.send(read, writes=False)

    async def add_call(self, call: FunctionCall, *, run_lease: str) -> FunctionCall:
        def add(tx: Tx) -> FunctionCall:
            self._leased_run(call.job_id, run_lease)
            key = (call.job_id, call.round, call.node)
            return self._tables.calls.get(key) or tx.calls.setdefault(key, call)

        return await self._connection.send(add, writes=True)

    async def calls(self, run_id: str, run_round: int | None = None) -> list[FunctionCall]:
        def read(_: Tx) -> list[FunctionCall]:
            calls = [
                call
                for call in self._tables.calls.values()
                if call.job_id == run_id and run_round in {None, call.round}
            ]
            return sorted(calls, key=lambda call: (call.began_at, call.node))

        return await self._connection.send(read, writes=False)

    async def size_bytes(self, run_id: str) -> int:
        def read(_: Tx) -> int:
            run = self._tables.jobs[run_id]
            while run.parent_id is not None:
                run = self._tables.jobs[run.parent_id]
            return self._size_of_calls(run)

        return await self._connection.send(read, writes=False)

    async def costs(self, run_ids: Sequence[str]) -> dict[str, UsageTotals]:
        def read(_: Tx) -> dict[str, UsageTotals]:
            below = {run_id: self._steps_below(run_id) for run_id in run_ids}
            times = {"timed": 0, "queued_us": 0, "ttft_us": 0, "generation_us": 0}
            return {
                run_id: plus(*(msgspec.structs.replace(totals_of(step), **times) for step in steps))
                for run_id, steps in below.items()
                if steps
            }

        return await self._connection.send(read, writes=False)

    def _steps_below(self, run_id: str) -> list[Job]:
        steps = [job for job in self._tables.jobs.values() if job.parent_id == run_id]
        return [*steps, *(each for step in steps for each in self._steps_below(step.id))]

    def _size_of_calls(self, run: Job) -> int:
        steps, key = self._tables.steps(run), (run.id, run.round)
        sizes = [len(step.body) + len(step.metadata) + len(step.response or b"") for step in steps]
        calls = [call for call in self._tables.calls.values() if (call.job_id, call.round) == key]
        sizes += [len(call.arguments) + len(call.output or b"") for call in calls]
        return sum(sizes) + sum(self._size_of_calls(step) for step in steps)

    async def insert_retry(self, run: Job, steps: Sequence[Job], calls: Sequence[FunctionCall], *, actor: str) -> Job:
        def insert(tx: Tx) -> Job:
            for step in steps:
                self._jobs.add_job(
                    tx, with_times(step, tx.now, 0, None), "succeed" if step.is_terminal else "submit", actor
                )
            tx.calls.update({(call.job_id, call.round, call.node): call for call in calls})
            return self._jobs.add_job(tx, with_times(run, tx.now, 0, None), "submit", actor)

        return await self._connection.send(insert, writes=True)

    async def stalled(self, limit: int) -> list[Job]:
        def read(tx: Tx) -> list[Job]:
            wake = TransitionRequest(verb="wake", actor="")
            runs = [job for job in self._tables.unfinished.values() if self._tables.may("wake", job, wake, tx.now)]
            return [run for run in runs if all(step.is_terminal for step in self._tables.steps(run))][:limit]

        return await self._connection.send(read, writes=False)

    def _leased_run(self, run_id: str | None, lease: str) -> Job:
        run = self._tables.jobs.get(run_id or "")
        if run is None or run.status != "bot" or run.lease != lease:
            raise Stale(f"The run {run_id} has ended, or another worker holds its lease.", job_id=run_id)
        return run
