"""Model of a store in plain Python, which follows the table `TRANSITIONS` exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from signoff.core.delivery import Delivery, DeliveryKind, DeliveryOutcome
from signoff.core.filters import JobFilter
from signoff.core.job import RUN_ENDED, TERMINAL, Decision, Job, Verdict
from signoff.core.transitions import TRANSITIONS, Guard
from signoff.core.turn import Turn
from signoff.errors import JobNotFound, NotFound, Stale
from signoff.store import TransitionRequest
from support.turns import chosen_in_turns

SECOND_US = 1_000_000
TIMES = ("due_at", "lease_until", "review_lease_until", "review_deadline", "release_at")
KEY_LIFETIME = 24 * 3600 * SECOND_US


class StoreContent(msgspec.Struct):
    """The content of a store: the rows of each table by primary key."""

    jobs: dict[str, Job] = {}
    keys: dict[tuple[int, str], str] = {}
    events: dict[tuple[str, int], tuple[str, str, int]] = {}
    votes: dict[tuple[str, int, str], tuple[Verdict, int]] = {}
    decisions: dict[tuple[str, int], tuple[Decision, int]] = {}
    deliveries: dict[str, Delivery] = {}


GUARDS: dict[Guard, Callable[[Job, TransitionRequest, Model], bool]] = {
    Guard.DUE: lambda job, step, model: job.lease is None and job.parked_at is None and job.due_at <= model.now,
    Guard.LEASE: lambda job, step, model: job.lease is not None and job.lease == step.lease,
    Guard.LAPSED: lambda job, step, model: job.lease_until is not None and job.lease_until < model.now,
    Guard.ROUND: lambda job, step, model: job.round == step.round,
    Guard.SEEN: lambda job, step, model: step.seq in {None, job.seq},
    Guard.OPENED: lambda job, step, model: job.review_lease is not None and job.review_lease == step.reviewer,
    Guard.UNOPENED: lambda job, step, model: reviewer_of(job, model.now) in {None, step.reviewer},
    Guard.UNDECIDED: lambda job, step, model: job.release_at is None,
    Guard.DECIDED: lambda job, step, model: job.release_at is not None,
    Guard.UNRELEASED: lambda job, step, model: job.release_at is not None and model.now < job.release_at,
    Guard.RELEASED: lambda job, step, model: job.release_at is not None and job.release_at <= model.now,
    Guard.OVERDUE: lambda job, step, model: job.review_deadline is not None and job.review_deadline <= model.now,
    Guard.QUIET: lambda job, step, model: (
        step.settled_steps == len([each for each in model.steps(job) if each.is_terminal])
    ),
    Guard.PARKED: lambda job, step, model: job.parked_at is not None,
}


def reviewer_of(job: Job, now: int) -> str | None:
    """Return the reviewer who has the job open at the time `now`, if any."""
    return None if job.review_lease_until is None or job.review_lease_until < now else job.review_lease


class Model:
    """The expected content of a store, and the time in microseconds; its methods correspond to the store's."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.content = StoreContent()
        self.logged = set[str]()
        """Ids of jobs in the table of calls, which no other job can have: ids are random."""

    # Submitting

    def insert(
        self, job: Job, *, actor: str, verb: str = "submit", due_seconds: float = 0, lease_seconds: float | None = None
    ) -> Job:
        """Insert a job, and return it, or return the job that has its key."""
        existing = self.job_of_key(job)
        if existing is not None:
            return existing
        lease_until = None if lease_seconds is None else self._after(lease_seconds)
        new_job = self._timed(job, due_at=self._after(due_seconds), lease_until=lease_until)
        if job.idempotency_key is not None:
            self.content.keys[job.user_id, job.idempotency_key] = job.id
        return self._write(new_job, verb, actor)

    def insert_ended(self, job: Job, *, actor: str, verbs: Sequence[str]) -> Job:
        """Insert a job that has already ended, and return it."""
        return self._write(self._timed(job, due_at=self.now, lease_until=None), verbs[-1], actor)

    def _timed(self, job: Job, *, due_at: int, lease_until: int | None) -> Job:
        times = {"created_at": self.now, "updated_at": self.now, "due_at": due_at, "lease_until": lease_until}
        return msgspec.structs.replace(job, **times)

    def job_of_key(self, job: Job) -> Job | None:
        """Return the job that has the key of `job`, unless that is over a day old or failed with a retryable error."""
        existing = self.content.jobs.get(self.content.keys.get((job.user_id, job.idempotency_key or ""), ""))
        if existing is None or existing.created_at + KEY_LIFETIME < self.now:
            return None
        may_help = existing.status == "fail" and existing.error is not None and existing.error.retryable
        return None if may_help else existing

    # Transitions

    def transition(self, job_id: str, *steps: TransitionRequest) -> list[Job]:
        """Apply transitions, and return the job after each. Raises JobNotFound, and Stale; then nothing has changed."""
        job = self.content.jobs.get(job_id)
        if job is None:
            raise JobNotFound
        results = list[Job]()
        for step in steps:
            if not self.is_allowed(job, step):
                raise Stale
            job = self._apply(job, step)
            results.append(job)
        for job, step in zip(results, steps, strict=True):
            self._write(job, step.verb, step.actor)
            if step.vote is not None:
                self.content.votes[job.id, job.round, step.vote.reviewer] = (step.vote.verdict, self.now)
            self._record_decision(job, step.decision)
        self._propagate(results[-1], steps[-1].actor)
        return results

    def _propagate(self, job: Job, actor: str) -> None:
        """Cancel the steps of a run that failed, and wake the run of a step that ended."""
        if job.status == "fail":
            for step in [
                step for step in self.content.jobs.values() if step.parent_id == job.id and not step.is_terminal
            ]:
                self.transition(step.id, TransitionRequest(verb="cancel", actor=actor, changes={"error": RUN_ENDED}))
        run = self.content.jobs.get(job.parent_id or "") if job.is_terminal else None
        wake = TransitionRequest(verb="wake", actor=actor, after_seconds={"due_at": 0})
        if run is not None and self.is_allowed(run, wake):
            self.transition(run.id, wake)

    def add_step(self, step: Job, *, actor: str, run_lease: str, lease_seconds: float) -> Job:
        """Insert a step of a run with this lease, or return the step that exists there. Raises Stale."""
        run = self.content.jobs.get(step.parent_id or "")
        if run is None or run.status != "bot" or run.lease != run_lease:
            raise Stale
        position = (step.parent_id, step.parent_round, step.node)
        existing = [
            job for job in self.content.jobs.values() if (job.parent_id, job.parent_round, job.node) == position
        ]
        return existing[0] if existing else self.insert(step, actor=actor, lease_seconds=lease_seconds)

    def steps(self, run: Job) -> Sequence[Job]:
        """Return the steps of a run in its current round."""
        return [job for job in self.content.jobs.values() if (job.parent_id, job.parent_round) == (run.id, run.round)]

    def stalled_runs(self) -> dict[str, Job]:
        """Return the parked runs without unfinished steps, by id."""
        parked = [job for job in self.content.jobs.values() if self.is_allowed(job, request_for("wake", job))]
        return {job.id: job for job in parked if all(step.is_terminal for step in self.steps(job))}

    def is_allowed(self, job: Job, step: TransitionRequest) -> bool:
        """Return True if the transition of `job` is allowed now."""
        row = TRANSITIONS[step.verb]
        return job.status in row.sources and all(GUARDS[guard](job, step, self) for guard in row.guards)

    def _apply(self, job: Job, step: TransitionRequest) -> Job:
        row = TRANSITIONS[step.verb]
        base = {"status": step.to or row.targets[0], "seq": job.seq + 1, "updated_at": self.now}
        added = {column: getattr(job, column) + amount for column, amount in row.adds.items()}
        times = {column: self._after(seconds) for column, seconds in step.after_seconds.items()}
        columns = base | dict.fromkeys(row.clears) | added | dict(step.changes) | times
        return msgspec.structs.replace(job, **columns)

    def claim(self, *, actor: str, lease: str, limit: int, lease_seconds: float, turn: Turn) -> list[Job]:
        """Claim up to `limit` waiting jobs, in turns."""
        step = TransitionRequest(
            verb="claim", actor=actor, changes={"lease": lease}, after_seconds={"lease_until": lease_seconds}
        )
        waiting = [job for job in self.content.jobs.values() if job.lane == "later" and self.is_allowed(job, step)]
        return [self.transition(job.id, step)[-1] for job in chosen_in_turns(waiting, limit, turn)]

    def renew(self, leases: dict[str, str], lease_seconds: float) -> set[str]:
        """Extend the leases that are still valid, and return the ids of their jobs."""
        jobs = self.content.jobs
        renewed = {job_id for job_id, lease in leases.items() if job_id in jobs and jobs[job_id].lease == lease}
        for job_id in renewed:
            jobs[job_id] = msgspec.structs.replace(jobs[job_id], lease_until=self._after(lease_seconds))
        return renewed

    def _write(self, job: Job, verb: str, actor: str) -> Job:
        self.content.jobs[job.id] = job
        self.content.events[job.id, job.seq] = (verb, actor, self.now)
        for target in job.deliver if job.status in TERMINAL and verb != "cancel" else ():
            delivery = Delivery(
                id=target.message_id(job.id),
                job_id=job.id,
                kind=target.kind,
                address=target.address,
                host=target.host,
                due_at=self.now,
                created_at=self.now,
            )
            assert delivery.id not in self.content.deliveries, "a job ends once"
            self.content.deliveries[delivery.id] = delivery
        return job

    def _record_decision(self, job: Job, decision: Decision | None) -> None:
        if decision is None:
            return
        assert (job.id, job.round) not in self.content.decisions, "one decision a round"
        self.content.decisions[job.id, job.round] = (decision, self.now)
        self.content.votes.setdefault((job.id, job.round, decision.reviewer), (decision.verdict, self.now))

    def _after(self, seconds: float) -> int:
        return self.now + round(seconds * SECOND_US)

    # Reading

    def list(self, job_filter: JobFilter) -> list[Job]:
        """Return a page of the jobs that match a filter."""
        jobs = sorted(self.content.jobs.values(), key=lambda job: job.id, reverse=job_filter.newest_first)
        if job_filter.after_id is not None:
            after = job_filter.after_id
            jobs = [job for job in jobs if (job.id < after if job_filter.newest_first else job.id > after)]
        jobs = [
            job for job in jobs if job_filter.user_id in {None, job.user_id} and job_filter.status in {None, job.status}
        ]
        jobs = [job for job in jobs if job_filter.with_steps or job.parent_id is None]
        return jobs[job_filter.offset :][: job_filter.limit]

    def allowed_jobs(self, verb: str) -> dict[str, Job]:
        """Return the jobs for which the transition is allowed now, by id."""
        return {job.id: job for job in self.content.jobs.values() if self.is_allowed(job, request_for(verb, job))}

    def due_times(self) -> Sequence[int]:
        """Return the future times at which something becomes due or runs out, in ascending order."""
        jobs, deliveries = self.content.jobs.values(), self.content.deliveries.values()
        times = [getattr(job, column) for job in jobs for column in TIMES if not job.is_terminal]
        times += [time for delivery in deliveries for time in (delivery.due_at, delivery.lease_until)]
        times += [self.content.jobs[job_id].created_at + KEY_LIFETIME for job_id in self.content.keys.values()]
        return sorted({time for time in times if time is not None and time > self.now})

    # Deliveries

    def is_free(self, delivery: Delivery) -> bool:
        """Return True if no valid lease is on the delivery."""
        return delivery.lease_until is None or delivery.lease_until < self.now

    def due(self, kind: DeliveryKind) -> list[Delivery]:
        """Return the deliveries of a kind that can be claimed."""
        waiting = [
            delivery
            for delivery in self.content.deliveries.values()
            if delivery.state == "due" and delivery.due_at <= self.now
        ]
        return [delivery for delivery in waiting if delivery.kind == kind and self.is_free(delivery)]

    def claim_delivery(self, delivery_id: str, lease: str, lease_seconds: float) -> Delivery:
        """Claim a delivery, and return it."""
        attempt = self.content.deliveries[delivery_id].attempt + 1
        return self._put(delivery_id, attempt=attempt, lease=lease, lease_until=self._after(lease_seconds))

    def settle(self, delivery_id: str, lease: str, outcome: DeliveryOutcome) -> bool:
        """Store the outcome of a delivery; return False if the lease was lost."""
        delivery = self.content.deliveries.get(delivery_id)
        if delivery is None or delivery.lease != lease:
            return False
        last_result = {"last_status": outcome.status, "last_error": outcome.error} if outcome.counts else {}
        self._put(
            delivery_id,
            state=outcome.state,
            attempt=delivery.attempt - (not outcome.counts),
            due_at=self._after(outcome.after_seconds),
            done_at=None if outcome.state == "due" else self.now,
            lease=None,
            lease_until=None,
            **last_result,
        )
        return True

    def redeliver(self, delivery_id: str) -> Delivery:
        """Make a delivery due again, and return it. Raises NotFound, and Stale while it is being sent."""
        delivery = self.content.deliveries.get(delivery_id)
        if delivery is None:
            raise NotFound
        if not self.is_free(delivery):
            raise Stale
        fresh = {"state": "due", "attempt": 0, "due_at": self.now, "done_at": None}
        return self._put(delivery_id, **fresh, lease=None, lease_until=None)

    def _put(self, delivery_id: str, **columns: object) -> Delivery:
        delivery = msgspec.structs.replace(self.content.deliveries[delivery_id], **columns)
        self.content.deliveries[delivery_id] = delivery
        return delivery

    # Purging

    def old(self, seconds: float) -> set[str]:
        """Return the ids of jobs that ended over `seconds` ago and are not needed by a delivery or run."""
        awaited = {delivery.job_id for delivery in self.content.deliveries.values() if delivery.state == "due"}
        ended = {job.id for job in self.content.jobs.values() if job.status in TERMINAL}
        jobs = self.content.jobs
        unfinished = jobs.keys() - ended
        old = {job_id for job_id in ended - awaited if jobs[job_id].updated_at < self._after(-seconds)}
        return {job_id for job_id in old if jobs[job_id].parent_id not in unfinished}

    def delete(self, job_ids: set[str]) -> None:
        """Delete jobs, and all rows that belong to them."""
        content = self.content
        content.jobs = {job_id: job for job_id, job in content.jobs.items() if job_id not in job_ids}
        content.keys = {key: job_id for key, job_id in content.keys.items() if job_id not in job_ids}
        content.events = {key: event for key, event in content.events.items() if key[0] not in job_ids}
        content.votes = {key: vote for key, vote in content.votes.items() if key[0] not in job_ids}
        content.decisions = {key: decision for key, decision in content.decisions.items() if key[0] not in job_ids}
        content.deliveries = {
            key: delivery for key, delivery in content.deliveries.items() if delivery.job_id not in job_ids
        }


def request_for(verb: str, job: Job, **fields: object) -> TransitionRequest:
    """Return a transition request with the lease and the round of `job`."""
    return msgspec.structs.replace(
        TransitionRequest(verb=verb, actor="sweeper", lease=job.lease, round=job.round, seq=job.seq), **fields
    )
