"""Model of a store in plain Python, which follows the table `TRANSITIONS` exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from signoff.core.delivery import Delivery, DeliveryKind, DeliveryOutcome
from signoff.core.filters import JobFilter
from signoff.core.job import RUN_ENDED, TERMINAL, TRANSITIONS, Decision, Guard, Job, Verdict
from signoff.errors import JobNotFound, NotFound, Stale
from signoff.store import TransitionRequest

SECOND = 1_000_000
TIMES = ("due_at", "lease_until", "review_lease_until", "review_deadline", "release_at")
KEY_LIFETIME = 24 * 3600 * SECOND


class Stand(msgspec.Struct):
    """The content of a store: the rows of each table by primary key."""

    jobs: dict[str, Job] = {}
    keys: dict[tuple[int, str], str] = {}
    events: dict[tuple[str, int], tuple[str, str, int]] = {}
    votes: dict[tuple[str, int, str], tuple[Verdict, int]] = {}
    decisions: dict[tuple[str, int], tuple[Decision, int]] = {}
    deliveries: dict[str, Delivery] = {}


GUARDS: dict[Guard, Callable[[Job, TransitionRequest, Model], bool]] = {
    Guard.DUE: lambda job, step, at: job.lease is None and job.parked_at is None and job.due_at <= at.now,
    Guard.LEASE: lambda job, step, at: job.lease is not None and job.lease == step.lease,
    Guard.LAPSED: lambda job, step, at: job.lease_until is not None and job.lease_until < at.now,
    Guard.ROUND: lambda job, step, at: job.round == step.round,
    Guard.UNOPENED: lambda job, step, at: opened_by(job, at.now) in {None, step.reviewer},
    Guard.UNDECIDED: lambda job, step, at: job.release_at is None,
    Guard.DECIDED: lambda job, step, at: job.release_at is not None,
    Guard.UNRELEASED: lambda job, step, at: job.release_at is not None and at.now < job.release_at,
    Guard.RELEASED: lambda job, step, at: job.release_at is not None and job.release_at <= at.now,
    Guard.OVERDUE: lambda job, step, at: job.review_deadline is not None and job.review_deadline <= at.now,
    Guard.QUIET: lambda job, step, at: step.settled_steps == len([each for each in at.steps(job) if each.is_terminal]),
    Guard.PARKED: lambda job, step, at: job.parked_at is not None,
}


def opened_by(job: Job, now: int) -> str | None:
    """Return the reviewer who has the job open at the time `now`, if any."""
    return None if job.review_lease_until is None or job.review_lease_until < now else job.review_lease


class Model:
    """The expected content of a store, and the time in microseconds; methods have the names of the store's methods."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.stand = Stand()

    # Submitting

    def insert(
        self, job: Job, *, actor: str, verb: str = "submit", due_seconds: float = 0, lease_seconds: float | None = None
    ) -> Job:
        """Insert a job, and return it, or return the job that has its key."""
        standing = self.under_key(job)
        if standing is not None:
            return standing
        lease_until = None if lease_seconds is None else self._after(lease_seconds)
        new = self._timed(job, due_at=self._after(due_seconds), lease_until=lease_until)
        if job.idempotency_key is not None:
            self.stand.keys[job.user_id, job.idempotency_key] = job.id
        return self._written(new, verb, actor)

    def insert_ended(self, job: Job, *, actor: str, verbs: Sequence[str]) -> Job:
        """Insert a job that has already ended, and return it."""
        return self._written(self._timed(job, due_at=self.now, lease_until=None), verbs[-1], actor)

    def _timed(self, job: Job, *, due_at: int, lease_until: int | None) -> Job:
        times = {"created_at": self.now, "updated_at": self.now, "due_at": due_at, "lease_until": lease_until}
        return msgspec.structs.replace(job, **times)

    def under_key(self, job: Job) -> Job | None:
        """Return the job that has the key of `job`, unless that is over a day old or failed with a retryable error."""
        standing = self.stand.jobs.get(self.stand.keys.get((job.user_id, job.idempotency_key or ""), ""))
        if standing is None or standing.created_at + KEY_LIFETIME < self.now:
            return None
        may_help = standing.status == "fail" and standing.error is not None and standing.error.retryable
        return None if may_help else standing

    # Transitions

    def move(self, job_id: str, *steps: TransitionRequest) -> list[Job]:
        """Apply transitions, and return the job after each. Raises JobNotFound, and Stale; then nothing has changed."""
        job = self.stand.jobs.get(job_id)
        if job is None:
            raise JobNotFound
        made = list[Job]()
        for step in steps:
            if not self.may(job, step):
                raise Stale
            job = self._moved(job, step)
            made.append(job)
        for job, step in zip(made, steps, strict=True):
            self._written(job, step.verb, step.actor)
            self._decided(job, step.decision)
        self._follow(made[-1], steps[-1].actor)
        return made

    def _follow(self, job: Job, actor: str) -> None:
        """Cancel the steps of a run that failed, and wake the run of a step that ended."""
        if job.status == "fail":
            for each in [
                each for each in self.stand.jobs.values() if each.parent_id == job.id and not each.is_terminal
            ]:
                self.move(each.id, TransitionRequest(verb="cancel", actor=actor, changes={"error": RUN_ENDED}))
        run = self.stand.jobs.get(job.parent_id or "") if job.is_terminal else None
        wake = TransitionRequest(verb="wake", actor=actor, after_seconds={"due_at": 0})
        if run is not None and self.may(run, wake):
            self.move(run.id, wake)

    def add_step(self, step: Job, *, actor: str, run_lease: str, lease_seconds: float) -> Job:
        """Insert a step of a run with this lease, or return the step that exists there. Raises Stale."""
        run = self.stand.jobs.get(step.parent_id or "")
        if run is None or run.status != "bot" or run.lease != run_lease:
            raise Stale
        place = (step.parent_id, step.parent_round, step.node)
        standing = [job for job in self.stand.jobs.values() if (job.parent_id, job.parent_round, job.node) == place]
        return standing[0] if standing else self.insert(step, actor=actor, lease_seconds=lease_seconds)

    def steps(self, run: Job) -> Sequence[Job]:
        """Return the steps of a run in its current round."""
        return [job for job in self.stand.jobs.values() if (job.parent_id, job.parent_round) == (run.id, run.round)]

    def forgotten(self) -> dict[str, Job]:
        """Return the parked runs without unfinished steps, by id."""
        parked = [job for job in self.stand.jobs.values() if self.may(job, seen("wake", job))]
        return {job.id: job for job in parked if all(step.is_terminal for step in self.steps(job))}

    def may(self, job: Job, step: TransitionRequest) -> bool:
        """Return True if the transition of `job` is allowed now."""
        move = TRANSITIONS[step.verb]
        return job.status in move.sources and all(GUARDS[guard](job, step, self) for guard in move.guards)

    def _moved(self, job: Job, step: TransitionRequest) -> Job:
        move = TRANSITIONS[step.verb]
        always = {"status": step.to or move.targets[0], "seq": job.seq + 1, "updated_at": self.now}
        added = {column: getattr(job, column) + more for column, more in move.adds.items()}
        times = {column: self._after(seconds) for column, seconds in step.after_seconds.items()}
        columns = always | dict.fromkeys(move.clears) | added | dict(step.changes) | times
        return msgspec.structs.replace(job, **columns)

    def claim(self, *, actor: str, lease: str, limit: int, lease_seconds: float) -> list[Job]:
        """Claim up to `limit` waiting jobs, by priority and id."""
        step = TransitionRequest(
            verb="claim", actor=actor, changes={"lease": lease}, after_seconds={"lease_until": lease_seconds}
        )
        waiting = [job for job in self.stand.jobs.values() if job.lane == "later" and self.may(job, step)]
        first = sorted(waiting, key=lambda job: (-job.priority, job.id))[:limit]
        return [self.move(job.id, step)[-1] for job in first]

    def renew(self, leases: dict[str, str], lease_seconds: float) -> set[str]:
        """Extend the leases that are still valid, and return the ids of their jobs."""
        jobs = self.stand.jobs
        standing = {job_id for job_id, lease in leases.items() if job_id in jobs and jobs[job_id].lease == lease}
        for job_id in standing:
            jobs[job_id] = msgspec.structs.replace(jobs[job_id], lease_until=self._after(lease_seconds))
        return standing

    def _written(self, job: Job, verb: str, actor: str) -> Job:
        self.stand.jobs[job.id] = job
        self.stand.events[job.id, job.seq] = (verb, actor, self.now)
        for to in job.deliver if job.status in TERMINAL and verb != "cancel" else ():
            delivery = Delivery(
                id=to.message_id(job.id),
                job_id=job.id,
                kind=to.kind,
                address=to.address,
                host=to.host,
                due_at=self.now,
                created_at=self.now,
            )
            assert delivery.id not in self.stand.deliveries, "a job ends once"
            self.stand.deliveries[delivery.id] = delivery
        return job

    def _decided(self, job: Job, decision: Decision | None) -> None:
        if decision is None:
            return
        assert (job.id, job.round) not in self.stand.decisions, "one decision a round"
        self.stand.decisions[job.id, job.round] = (decision, self.now)
        self.stand.votes[job.id, job.round, decision.reviewer] = (decision.verdict, self.now)

    def _after(self, seconds: float) -> int:
        return self.now + round(seconds * SECOND)

    # Reading

    def list(self, which: JobFilter) -> list[Job]:
        """Return a page of the jobs that match a filter."""
        jobs = sorted(self.stand.jobs.values(), key=lambda job: job.id, reverse=which.newest_first)
        if which.after_id is not None:
            after = which.after_id
            jobs = [job for job in jobs if (job.id < after if which.newest_first else job.id > after)]
        jobs = [job for job in jobs if which.user_id in {None, job.user_id} and which.status in {None, job.status}]
        jobs = [job for job in jobs if which.with_steps or job.parent_id is None]
        return jobs[which.offset :][: which.limit]

    def standing(self, verb: str) -> dict[str, Job]:
        """Return the jobs for which the transition is allowed now, by id."""
        return {job.id: job for job in self.stand.jobs.values() if self.may(job, seen(verb, job))}

    def moments(self) -> Sequence[int]:
        """Return the future times at which something becomes due or runs out, in ascending order."""
        jobs, deliveries = self.stand.jobs.values(), self.stand.deliveries.values()
        times = [getattr(job, column) for job in jobs for column in TIMES if not job.is_terminal]
        times += [time for one in deliveries for time in (one.due_at, one.lease_until)]
        times += [self.stand.jobs[job_id].created_at + KEY_LIFETIME for job_id in self.stand.keys.values()]
        return sorted({time for time in times if time is not None and time > self.now})

    # Deliveries

    def is_free(self, delivery: Delivery) -> bool:
        """Return True if no valid lease is on the delivery."""
        return delivery.lease_until is None or delivery.lease_until < self.now

    def due(self, kind: DeliveryKind) -> list[Delivery]:
        """Return the deliveries of a kind that can be claimed."""
        waiting = [one for one in self.stand.deliveries.values() if one.state == "due" and one.due_at <= self.now]
        return [one for one in waiting if one.kind == kind and self.is_free(one)]

    def taken(self, delivery_id: str, lease: str, lease_seconds: float) -> Delivery:
        """Claim a delivery, and return it."""
        attempt = self.stand.deliveries[delivery_id].attempt + 1
        return self._put(delivery_id, attempt=attempt, lease=lease, lease_until=self._after(lease_seconds))

    def settle(self, delivery_id: str, lease: str, outcome: DeliveryOutcome) -> bool:
        """Store the outcome of a delivery; return False if the lease was lost."""
        delivery = self.stand.deliveries.get(delivery_id)
        if delivery is None or delivery.lease != lease:
            return False
        told = {"last_status": outcome.status, "last_error": outcome.error} if outcome.counts else {}
        self._put(
            delivery_id,
            state=outcome.state,
            attempt=delivery.attempt - (not outcome.counts),
            due_at=self._after(outcome.after_seconds),
            done_at=None if outcome.state == "due" else self.now,
            lease=None,
            lease_until=None,
            **told,
        )
        return True

    def resend(self, delivery_id: str) -> Delivery:
        """Make a delivery due again, and return it. Raises NotFound, and Stale while it is being sent."""
        delivery = self.stand.deliveries.get(delivery_id)
        if delivery is None:
            raise NotFound
        if not self.is_free(delivery):
            raise Stale
        fresh = {"state": "due", "attempt": 0, "due_at": self.now, "done_at": None}
        return self._put(delivery_id, **fresh, lease=None, lease_until=None)

    def _put(self, delivery_id: str, **columns: object) -> Delivery:
        changed = msgspec.structs.replace(self.stand.deliveries[delivery_id], **columns)
        self.stand.deliveries[delivery_id] = changed
        return changed

    # Purging

    def old(self, seconds: float) -> set[str]:
        """Return the ids of jobs that ended over `seconds` ago and are not needed by a delivery or run."""
        awaited = {delivery.job_id for delivery in self.stand.deliveries.values() if delivery.state == "due"}
        ended = {job.id for job in self.stand.jobs.values() if job.status in TERMINAL}
        jobs = self.stand.jobs
        goes_on = jobs.keys() - ended
        old = {job_id for job_id in ended - awaited if jobs[job_id].updated_at < self._after(-seconds)}
        return {job_id for job_id in old if jobs[job_id].parent_id not in goes_on}

    def forget(self, gone: set[str]) -> None:
        """Delete the jobs `gone`, and all rows that belong to them."""
        stand = self.stand
        stand.jobs = {job_id: job for job_id, job in stand.jobs.items() if job_id not in gone}
        stand.keys = {key: job_id for key, job_id in stand.keys.items() if job_id not in gone}
        stand.events = {key: event for key, event in stand.events.items() if key[0] not in gone}
        stand.votes = {key: vote for key, vote in stand.votes.items() if key[0] not in gone}
        stand.decisions = {key: made for key, made in stand.decisions.items() if key[0] not in gone}
        stand.deliveries = {key: one for key, one in stand.deliveries.items() if one.job_id not in gone}


def seen(verb: str, job: Job, **more: object) -> TransitionRequest:
    """Return a transition request with the lease and the round of `job`."""
    return msgspec.structs.replace(
        TransitionRequest(verb=verb, actor="sweeper", lease=job.lease, round=job.round), **more
    )
