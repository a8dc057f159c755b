"""In-memory jobs: insertion, leases, transitions and queries."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from signoff.core.backlog import Backlog, JobQueueDepth
from signoff.core.filters import JobFilter, Page, page_length
from signoff.core.job import RUN_ENDED, Decision, Event, Job, Status, Vote
from signoff.core.reviews.queues import VoteRecord
from signoff.core.reviews.receipt import draft_of
from signoff.core.times import SECOND_US
from signoff.core.transitions import TRANSITIONS, Guard
from signoff.core.turn import FIRST_TURN, Turn
from signoff.errors import JobNotFound, Stale, id_taken
from signoff.store import InitialVerb, TransitionListener, TransitionRequest
from signoff.stores.audits import end_of_copy
from signoff.stores.calls import encode_call, insert_call
from signoff.stores.changes import TransitionFeed
from signoff.stores.jobs import ALL_USERS, insert_job, result_key_of, with_times
from signoff.stores.jobs import _is_key_free as is_key_free
from signoff.stores.schema import events, used_keys
from signoff.stores.transitions import (
    changed_columns,
    changes_of,
    create_deliveries,
    event_of,
    is_redone_copy,
)
from simulation.budgets import add_copy, check_pass, record_coin, record_verdict
from simulation.tables import Connection, Tables, Tx, next_state
from support.turns import chosen_in_turns


class MemoryJobs:
    """In-memory implementation of `store.Jobs`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection
        self._feed = TransitionFeed()

    def observe(self, listener: TransitionListener) -> None:
        self._feed.observe(listener)

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
            existing = self._find_existing(tx, job)
            if existing is not None:
                return existing
            result_key = result_key_of(job)
            if result_key is not None:
                holder = self._tables.keys.get((ALL_USERS, result_key))
                if holder is not None and self._tables.jobs[holder].user_id != job.user_id:
                    raise id_taken(job.client_id or "")
                tx.add(used_keys, {"user_id": ALL_USERS, "key": result_key, "job_id": job.id})
            inserted = self.add_job(tx, with_times(job, tx.now, due_seconds, lease_seconds), verb, actor)
            if job.idempotency_key is not None:
                tx.add(used_keys, {"user_id": job.user_id, "key": job.idempotency_key, "job_id": job.id})
            return inserted

        return await self._connection.send(insert, writes=True)

    async def existing(self, job: Job) -> Job | None:
        return await self._connection.send(lambda tx: self._find_existing(tx, job), writes=True)

    async def insert_ended(self, job: Job, *, actor: str, verbs: Sequence[str]) -> Job:
        def insert(tx: Tx) -> Job:
            return self.add_job(tx, with_times(job, tx.now, 0, None), verbs[-1], actor, moves=list(verbs))

        return await self._connection.send(insert, writes=True)

    async def log_call(
        self, job: Job, *, actor: str, verbs: Sequence[str], at_once: bool = False
    ) -> asyncio.Future[int]:
        data = encode_call(job, actor=actor, verbs=verbs)

        def log(tx: Tx) -> int:
            tx.inserted.append((job, verbs[-1]))
            return insert_call(tx, job, data)  # type: ignore[arg-type]

        return self._connection.send(log, writes=True)

    async def transition(self, job_id: str, *requests: TransitionRequest) -> Job:
        job = await self._connection.send(lambda tx: self.apply(tx, job_id, *requests), writes=True)
        self._feed.publish(job, requests)
        return job

    async def claim(
        self, *, actor: str, lease: str, limit: int, lease_seconds: float, turn: Turn = FIRST_TURN
    ) -> list[Job]:
        request = TransitionRequest(
            verb="claim", actor=actor, changes={"lease": lease}, after_seconds={"lease_until": lease_seconds}
        )

        def claim(tx: Tx) -> list[Job]:
            waiting = [job for job in self._tables.unfinished.values() if job.lane == "later"]
            due = [job for job in waiting if self._tables.may("claim", job, request, tx.now)]
            return [self._apply_one(tx, job, request) for job in chosen_in_turns(due, limit, turn)]

        claimed = await self._connection.send(claim, writes=True)
        for job in claimed:
            self._feed.publish(job, [request])
        return claimed

    async def renew(self, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
        def renew(tx: Tx) -> set[str]:
            leased = ((self._tables.jobs.get(job_id), lease) for job_id, lease in leases.items())
            held = [job for job, lease in leased if job is not None and job.lease == lease]
            until = tx.now + round(lease_seconds * SECOND_US)
            tx.jobs = {job.id: msgspec.structs.replace(job, lease_until=until) for job in held}
            return {*tx.jobs}

        return await self._connection.send(renew, writes=True)

    async def get(self, job_id: str) -> Job | None:
        return await self._connection.send(lambda _: self._tables.jobs.get(job_id), writes=False)

    async def by_client_id(self, user_id: int, client_id: str) -> Job | None:
        def read(_: Tx) -> Job | None:
            named = (job for key, job in self._tables.by_client_id.items() if key[:2] == (user_id, client_id))
            return max(named, key=lambda job: job.id, default=None)

        return await self._connection.send(read, writes=False)

    async def statuses(self, job_ids: Sequence[str]) -> dict[str, tuple[Status, int]]:
        def read(_: Tx) -> dict[str, tuple[Status, int]]:
            jobs = [job for job_id in job_ids if (job := self._tables.jobs.get(job_id)) is not None]
            return {job.id: (job.status, job.seq) for job in jobs}

        return await self._connection.send(read, writes=False)

    async def list(self, filters: JobFilter) -> Page[Job]:
        def read(_: Tx) -> Page[Job]:
            jobs = [job for job in self._matching(filters) if filters.after_id is None or _is_after(job, filters)]
            jobs.sort(key=lambda job: job.id, reverse=filters.newest_first)
            matching = jobs[filters.offset : filters.offset + filters.limit]
            sizes = (len(job.body) + len(job.metadata) + len(job.response or b"") for job in matching)
            page = matching[: page_length(sizes, filters.max_bytes)]
            is_full = 0 < len(matching) == filters.limit
            return Page(page, may_continue=is_full or len(page) < len(matching))

        return await self._connection.send(read, writes=False)

    async def count(self, filters: JobFilter, *, at_most: int) -> int:
        def read(_: Tx) -> int:
            matching = self._matching(filters)
            later = (job for job in matching if filters.after_id is None or _is_after(job, filters))
            return sum(1 for _ in islice(later, at_most))

        return await self._connection.send(read, writes=False)

    async def backlog(self, user_id: int, *, at_most: int) -> Backlog:
        def read(_: Tx) -> Backlog:
            unfinished = [job for job in self._tables.unfinished.values() if job.user_id == user_id]
            unfinished = [job for job in unfinished if job.copy_of is None]
            parts = [[job for job in unfinished if job.status == status][:at_most] for status in ("bot", "human")]
            counted = [job for part in parts for job in part]
            sizes = [len(job.body) + len(job.metadata) + len(job.response or b"") for job in counted]
            return Backlog(len(counted), sum(sizes))

        return await self._connection.send(read, writes=False)

    async def queue_depths(self, *, at_most: int) -> list[JobQueueDepth]:
        def read(tx: Tx) -> list[JobQueueDepth]:
            queued = (job for job in self._tables.unfinished.values() if (job.status, job.lane) == ("bot", "later"))
            waiting = [job for job in queued if job.lease is None and job.parked_at is None and job.due_at <= tx.now]
            roles = {user.id: user.role for user in self._tables.users.values()}
            by_owner = defaultdict[str, list[Job]](list)
            for job in waiting[:at_most]:
                by_owner[roles.get(job.user_id, "none")].append(job)
            return [
                JobQueueDepth(
                    owner=owner, jobs=len(jobs), oldest_seconds=(tx.now - min(job.due_at for job in jobs)) / SECOND_US
                )
                for owner, jobs in by_owner.items()
            ]

        return await self._connection.send(read, writes=False)

    async def events(self, job_id: str) -> list[Event]:
        def read(_: Tx) -> Sequence[Event]:
            rows = self._tables.events.get(job_id, [])
            return [msgspec.structs.replace(event, data=msgspec.json.decode(data)) for event, data in rows]

        return await self._connection.send(read, writes=False)

    async def lapsed(self, limit: int) -> list[Job]:
        return await self._eligible("lapse", limit)

    async def due_for_release(self, limit: int) -> list[Job]:
        return await self._eligible("approve", limit)

    async def overdue(self, limit: int) -> list[Job]:
        return await self._eligible("expire", limit)

    async def purge(self, older_than_seconds: float, limit: int) -> int:
        def purge(tx: Tx) -> int:
            before = tx.now - round(older_than_seconds * SECOND_US)
            undelivered = {delivery.job_id for delivery in self._tables.deliveries.values() if delivery.state == "due"}
            ended = self._tables.ended.values()
            unfinished = self._tables.unfinished
            old = [job.id for job in ended if job.updated_at < before and job.id not in undelivered]
            old = [job_id for job_id in old if self._tables.jobs[job_id].parent_id not in unfinished]
            unended = {batch.id for batch in self._tables.batches.values() if not batch.has_ended}
            old = [job_id for job_id in old if self._tables.jobs[job_id].batch_id not in unended]
            tx.purged = old[:limit]
            return len(tx.purged)

        return await self._connection.send(purge, writes=True)

    async def _eligible(self, verb: str, limit: int) -> Sequence[Job]:
        """Return jobs to which an actor that knows their lease and round may apply `verb` now."""

        def read(tx: Tx) -> Sequence[Job]:
            jobs = self._tables.unfinished.values()
            requests = [(job, TransitionRequest(verb=verb, actor="", lease=job.lease, round=job.round)) for job in jobs]
            return [job for job, request in requests if self._tables.may(verb, job, request, tx.now)][:limit]

        return await self._connection.send(read, writes=False)

    def add_job(self, tx: Tx, job: Job, verb: str, actor: str, **note: Any) -> Job:
        tx.inserted.append((job, verb))
        return insert_job(tx, job, verb, actor, **note)  # type: ignore[arg-type]

    def _find_existing(self, tx: Tx, job: Job) -> Job | None:
        """Return the stored job that has the client id or the idempotency key of `job`."""
        name = (job.user_id, job.client_id or "", job.door)
        existing = None if job.client_id is None else self._tables.by_client_id.get(name)
        return existing or (None if job.idempotency_key is None else self._standing_under_key(tx, job))

    def _standing_under_key(self, tx: Tx, job: Job) -> Job | None:
        """Return the job that holds the idempotency key of `job`; None if the key is free."""
        job_id = self._tables.keys.get((job.user_id, job.idempotency_key or ""))
        existing = None if job_id is None else self._tables.jobs[job_id]
        return None if existing is None or is_key_free(existing, tx.now) else existing

    def apply(self, tx: Tx, job_id: str, *requests: TransitionRequest) -> Job:
        job = self._tables.jobs.get(job_id)
        if job is None:
            raise JobNotFound(f"The job {job_id} does not exist, or you may not see it.")
        before = job
        decision = next((request.decision for request in requests if request.decision is not None), None)
        for request in requests:
            check_pass(self._tables, request)
            if not self._tables.may(request.verb, job, request, tx.now):
                raise self._stale_error(job, request, tx.now)
            job = self._apply_one(tx, job, request)
            if request.vote is not None:
                tx.blind[job.id, job.round, request.vote.reviewer] = Vote(decision=request.vote, at=tx.now)
                tx.votes.append(_vote_record(job, request.vote, tx.now))
            if request.decision is not None:
                tx.decisions[job.id, job.round] = request.decision
                tx.votes.append(_vote_record(job, request.decision, tx.now))
            self._record(tx, job, request)
            draft = draft_of(request.verb, before, job, decision)
            tx.drafts += [] if draft is None else [draft]
        if is_redone_copy(job):
            [(submitted, _), *_] = self._tables.events.get(job.copy_of or "") or [(None, None)]
            end = end_of_copy(None if submitted is None else submitted.actor)
            job = self._apply_one(tx, job, end)
            self._record(tx, job, end)
        if job.is_terminal:
            self._propagate_end(tx, job, requests[-1].actor)
        return job

    def _record(self, tx: Tx, job: Job, request: TransitionRequest) -> None:
        """Add the notifications, the deliveries and the copy of a transition, and count it in its error budget."""
        record_coin(self._tables, tx, job, request)
        if (copy := record_verdict(self._tables, tx, job, request.verb)) is not None:
            add_copy(tx, copy, request.actor)
        tx.changes.extend(changes_of(job))
        create_deliveries(tx, job, request.verb)  # type: ignore[arg-type]

    def _propagate_end(self, tx: Tx, job: Job, actor: str) -> None:
        """Cancel the steps of a failed job, and wake the run of a step that has ended."""
        cancel = TransitionRequest(verb="cancel", actor=actor, changes={"error": RUN_ENDED})
        children = [child for child in self._tables.unfinished.values() if child.parent_id == job.id]
        for child in children if job.status == "fail" else []:
            cancelled = self._apply_one(tx, child, cancel)
            self._record(tx, cancelled, cancel)
            self._propagate_end(tx, cancelled, actor)
        run = self._tables.jobs.get(job.parent_id or "")
        run = tx.jobs.get(job.parent_id or "", run)
        wake = TransitionRequest(verb="wake", actor=actor, after_seconds={"due_at": 0})
        if run is not None and self._tables.may("wake", run, wake, tx.now):
            tx.changes.extend(changes_of(self._apply_one(tx, run, wake)))

    def _apply_one(self, tx: Tx, job: Job, request: TransitionRequest) -> Job:
        """Apply a permitted transition, add its event, and return the changed job."""
        changed = next_state(self._tables.transitions[request.verb], job, request, tx.now)
        tx.add(events, event_of(changed, request.verb, request.actor, changed_columns(changed, request)))
        tx.jobs[changed.id] = changed
        tx.transitions.append((job, request, changed))
        return changed

    def _stale_error(self, job: Job, request: TransitionRequest, now: int) -> Stale:
        row = self._tables.decisions.get((job.id, -1 if request.round is None else request.round))
        decision = job.decision or (row and row[0])
        winner = f"; {decision.reviewer} decided: {decision.verdict}" if decision else ""
        is_open = job.review_lease not in {None, request.reviewer} and (job.review_lease_until or 0) >= now
        opened = f"; {job.review_lease} has it open" if is_open else ""
        has_moved_on = Guard.ROUND in TRANSITIONS[request.verb].guards and request.round not in {None, job.round}
        in_round = f"; this is round {job.round}, not {request.round}" if has_moved_on else ""
        return Stale(
            f"The job is {job.status}{winner}{in_round}{opened}; `{request.verb}` is not possible now.", job_id=job.id
        )

    def _matching(self, filters: JobFilter) -> Sequence[Job]:
        jobs = self._tables.unfinished if filters.status in {"bot", "human"} else self._tables.jobs
        matching = [job for job in jobs.values() if filters.status in {None, job.status}]
        matching = [job for job in matching if filters.with_steps or job.parent_id is None]
        matching = [job for job in matching if filters.fingerprint in {None, job.fingerprint}]
        matching = [job for job in matching if filters.upstream_object_id in {None, job.upstream_object_id}]
        matching = [job for job in matching if filters.user_id is None or filters.with_copies or job.copy_of is None]
        return [job for job in matching if filters.user_id in {None, job.user_id}]


def _vote_record(job: Job, vote: Decision, now: int) -> VoteRecord:
    return VoteRecord(job_id=job.id, round=job.round, reviewer=vote.reviewer, verdict=vote.verdict, at=now)


def _is_after(job: Job, filters: JobFilter) -> bool:
    return job.id < (filters.after_id or "") if filters.newest_first else job.id > (filters.after_id or "")
