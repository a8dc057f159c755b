"""In-memory jobs: insertion, leases, transitions and queries."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from signoff.core.filters import JobFilter
from signoff.core.job import RUN_ENDED, Event, Job, Status
from signoff.errors import JobNotFound, Stale
from signoff.store import InitialVerb, TransitionRequest
from signoff.stores.jobs import _is_key_free as is_key_free
from signoff.stores.jobs import insert_job, with_times
from signoff.stores.schema import events, used_keys
from signoff.stores.transitions import SECOND, changes_of, create_deliveries, event_of
from signoff.stores.transitions import _changed_columns as changed_columns
from simulation.tables import Tables, Tx, Way, after


class MemoryJobs:
    """In-memory implementation of `store.Jobs`."""

    def __init__(self, tables: Tables, way: Way) -> None:
        self._tables = tables
        self._way = way

    async def insert(
        self,
        job: Job,
        *,
        actor: str,
        verb: InitialVerb = "submit",
        due_seconds: float = 0,
        lease_seconds: float | None = None,
    ) -> Job:
        def insert(tx: Tx) -> Job:
            standing = self._standing_under_name(tx, job)
            if standing is not None:
                return standing
            made = self.made(tx, with_times(job, tx.now, due_seconds, lease_seconds), verb, actor)
            if job.idempotency_key is not None:
                tx.add(used_keys, {"user_id": job.user_id, "key": job.idempotency_key, "job_id": job.id})
            return made

        return await self._way.send(insert, writes=True)

    async def insert_ended(self, job: Job, *, actor: str, verbs: Sequence[str]) -> asyncio.Future[Job]:
        def insert(tx: Tx) -> Job:
            return self.made(tx, with_times(job, tx.now, 0, None), verbs[-1], actor, moves=list(verbs))

        return self._way.send(insert, writes=True)

    async def transition(self, job_id: str, *steps: TransitionRequest) -> Job:
        return await self._way.send(lambda tx: self._moved(tx, job_id, *steps), writes=True)

    async def claim(
        self, *, actor: str, lease: str, limit: int, lease_seconds: float, full: Sequence[str] = ()
    ) -> list[Job]:
        step = TransitionRequest(
            verb="claim", actor=actor, changes={"lease": lease}, after_seconds={"lease_until": lease_seconds}
        )

        def claim(tx: Tx) -> list[Job]:
            waiting = [job for job in self._tables.unfinished.values() if job.lane == "later" and job.model not in full]
            due = [job for job in waiting if self._tables.may("claim", job, step, tx.now)]
            due.sort(key=lambda job: (-job.priority, job.id))
            return [self._step(tx, job, step) for job in due[:limit]]

        return await self._way.send(claim, writes=True)

    async def renew(self, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
        def renew(tx: Tx) -> set[str]:
            asked = ((self._tables.jobs.get(job_id), lease) for job_id, lease in leases.items())
            standing = [job for job, lease in asked if job is not None and job.lease == lease]
            until = tx.now + round(lease_seconds * SECOND)
            tx.jobs = {job.id: msgspec.structs.replace(job, lease_until=until) for job in standing}
            return {*tx.jobs}

        return await self._way.send(renew, writes=True)

    async def get(self, job_id: str) -> Job | None:
        return await self._way.send(lambda _: self._tables.jobs.get(job_id), writes=False)

    async def by_client_id(self, user_id: int, client_id: str) -> Job | None:
        return await self._way.send(lambda _: self._tables.named.get((user_id, client_id)), writes=False)

    async def statuses(self, job_ids: Sequence[str]) -> dict[str, tuple[Status, int]]:
        def look(_: Tx) -> dict[str, tuple[Status, int]]:
            found = [job for job_id in job_ids if (job := self._tables.jobs.get(job_id)) is not None]
            return {job.id: (job.status, job.seq) for job in found}

        return await self._way.send(look, writes=False)

    async def list(self, which: JobFilter) -> list[Job]:
        def look(_: Tx) -> Sequence[Job]:
            found = [job for job in self._found(which) if which.after_id is None or _is_beyond(job, which)]
            found.sort(key=lambda job: job.id, reverse=which.newest_first)
            return found[which.offset : which.offset + which.limit]

        return await self._way.send(look, writes=False)

    async def count(self, which: JobFilter) -> int:
        def look(_: Tx) -> int:
            return sum(1 for job in self._found(which) if which.after_id is None or _is_beyond(job, which))

        return await self._way.send(look, writes=False)

    async def events(self, job_id: str) -> list[Event]:
        def look(_: Tx) -> Sequence[Event]:
            kept = self._tables.events.get(job_id, [])
            return [msgspec.structs.replace(event, data=msgspec.json.decode(data)) for event, data in kept]

        return await self._way.send(look, writes=False)

    async def lapsed(self, limit: int) -> list[Job]:
        return await self._standing("lapse", limit)

    async def released(self, limit: int) -> list[Job]:
        return await self._standing("approve", limit)

    async def overdue(self, limit: int) -> list[Job]:
        return await self._standing("expire", limit)

    async def purge(self, older_than_seconds: float, limit: int) -> int:
        def purge(tx: Tx) -> int:
            before = tx.now - round(older_than_seconds * SECOND)
            told_later = {one.job_id for one in self._tables.deliveries.values() if one.state == "due"}
            ended = self._tables.ended.values()
            gone_on = self._tables.unfinished
            old = [job.id for job in ended if job.updated_at < before and job.id not in told_later]
            old = [job_id for job_id in old if self._tables.jobs[job_id].parent_id not in gone_on]
            tx.forgotten = old[:limit]
            return len(tx.forgotten)

        return await self._way.send(purge, writes=True)

    async def _standing(self, verb: str, limit: int) -> Sequence[Job]:
        """Return jobs to which an actor that knows their lease and round may apply `verb` now."""

        def look(tx: Tx) -> Sequence[Job]:
            jobs = self._tables.unfinished.values()
            steps = [(job, TransitionRequest(verb=verb, actor="", lease=job.lease, round=job.round)) for job in jobs]
            return [job for job, step in steps if self._tables.may(verb, job, step, tx.now)][:limit]

        return await self._way.send(look, writes=False)

    def made(self, tx: Tx, job: Job, verb: str, actor: str, **note: Any) -> Job:
        tx.made.append((job, verb))
        return insert_job(tx, job, verb, actor, **note)  # type: ignore[arg-type]

    def _standing_under_name(self, tx: Tx, job: Job) -> Job | None:
        """Return the stored job that has the client id or the idempotency key of `job`."""
        named = None if job.client_id is None else self._tables.named.get((job.user_id, job.client_id))
        return named or (None if job.idempotency_key is None else self._standing_under_key(tx, job))

    def _standing_under_key(self, tx: Tx, job: Job) -> Job | None:
        """Return the job that holds the idempotency key of `job`; None if the key is free."""
        standing = self._tables.keys.get((job.user_id, job.idempotency_key or ""))
        found = None if standing is None else self._tables.jobs[standing]
        return None if found is None or is_key_free(found, tx.now) else found

    def _moved(self, tx: Tx, job_id: str, *steps: TransitionRequest) -> Job:
        job = self._tables.jobs.get(job_id)
        if job is None:
            raise JobNotFound(f"There is no job {job_id}.")
        for step in steps:
            if not self._tables.may(step.verb, job, step, tx.now):
                raise self._refusal(job, step, tx.now)
            job = self._step(tx, job, step)
            if step.decision is not None:
                tx.decisions[job.id, job.round] = step.decision
            tx.changes.extend(changes_of(job))
            create_deliveries(tx, job, step.verb)  # type: ignore[arg-type]
        if job.is_terminal:
            self._follow(tx, job, steps[-1].actor)
        return job

    def _follow(self, tx: Tx, job: Job, actor: str) -> None:
        """Cancel the steps of a failed job, and wake the run of a step that has ended."""
        cancel = TransitionRequest(verb="cancel", actor=actor, changes={"error": RUN_ENDED})
        below = [each for each in self._tables.unfinished.values() if each.parent_id == job.id]
        for each in below if job.status == "fail" else []:
            cancelled = self._step(tx, each, cancel)
            tx.changes.extend(changes_of(cancelled))
            self._follow(tx, cancelled, actor)
        run = self._tables.jobs.get(job.parent_id or "")
        run = tx.jobs.get(job.parent_id or "", run)
        wake = TransitionRequest(verb="wake", actor=actor, after_seconds={"due_at": 0})
        if run is not None and self._tables.may("wake", run, wake, tx.now):
            tx.changes.extend(changes_of(self._step(tx, run, wake)))

    def _step(self, tx: Tx, job: Job, step: TransitionRequest) -> Job:
        """Apply a permitted transition, add its event, and return the changed job."""
        made = after(self._tables.moves[step.verb], job, step, tx.now)
        tx.add(events, event_of(made, step.verb, step.actor, changed_columns(made, step)))
        tx.jobs[made.id] = made
        tx.moves.append((job, step, made))
        return made

    def _refusal(self, job: Job, step: TransitionRequest, now: int) -> Stale:
        then = self._tables.decisions.get((job.id, -1 if step.round is None else step.round))
        decision = job.decision or (then and then[0])
        winner = f"; {decision.reviewer} decided: {decision.verdict}" if decision else ""
        is_open = job.review_lease not in {None, step.reviewer} and (job.review_lease_until or 0) >= now
        opened = f"; {job.review_lease} has it open" if is_open else ""
        return Stale(f"The job is {job.status}{winner}{opened}; `{step.verb}` is not possible now.", job_id=job.id)

    def _found(self, which: JobFilter) -> Sequence[Job]:
        jobs = self._tables.unfinished if which.status in {"bot", "human"} else self._tables.jobs
        found = [job for job in jobs.values() if which.status in {None, job.status}]
        found = [job for job in found if which.with_steps or job.parent_id is None]
        found = [job for job in found if which.fingerprint in {None, job.fingerprint}]
        found = [job for job in found if which.upstream_object_id in {None, job.upstream_object_id}]
        return [job for job in found if which.user_id in {None, job.user_id}]


def _is_beyond(job: Job, which: JobFilter) -> bool:
    return job.id < (which.after_id or "") if which.newest_first else job.id > (which.after_id or "")
