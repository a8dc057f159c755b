"""Interface of the store: jobs and their transitions, people, prompts and pipelines, limits, usage, and change events.

All times that a store writes and compares come from its database's clock: microseconds since 1970, UTC.
`accounts`, `batches`, `budgets`, `catalog`, `records` and `reviews` have the other parts of the interface. Any method
may raise `Overloaded` if the database does not answer in time, and `BadRequest` if it cannot store a text (PostgreSQL
stores no NUL characters).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from signoff.accounts import Audit, Limits, People, SavedViews, SignIns, UsageRecords
from signoff.batches import Batches, Files
from signoff.budgets import Budgets
from signoff.catalog import Catalog, Library, ModelLogs, Policies, Secrets, Streams, UpstreamObjects
from signoff.core.audit import AuditChange
from signoff.core.backlog import Backlog, JobQueueDepth
from signoff.core.filters import JobFilter, Page
from signoff.core.job import Decision, Event, Job, Status
from signoff.core.turn import FIRST_TURN, Turn
from signoff.records import Deliveries, Departures, Erasures, Receipts, Runs
from signoff.reviews import ReviewQueues, Reviews

CachedTopic = Literal[
    "models", "people", "prices", "limits", "cache", "compositions", "functions", "streams", "policies"
]
"""Kinds of rows that processes keep copies of; `compositions` are prompts and pipelines."""
Topic = Literal["job", "due", "delivery", "batch", CachedTopic, "any"]
"""Subjects of change notifications: see `Store.listen`."""
InitialVerb = Literal["submit", "hit", "refuse", "present"]
TransitionListener = Callable[[Job, Sequence["TransitionRequest"]], None]
Listener = Callable[[Topic, str], None]
"""A function that is called with a topic and a name when something has changed: see `Store.listen`."""


class TransitionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for one transition of a job: its verb, its actor, the values for the guards, and the new columns."""

    verb: str
    """The name of the transition, a key of `core.transitions.TRANSITIONS`."""
    actor: str
    """The user or process that requests the transition, such as `user:ann@example.com`; recorded in the event."""
    to: Status | None = None
    """The new status. Needed only for a verb with several targets; None selects the first one."""
    lease: str | None = None
    """The token of the lease that the actor holds, for `Guard.LEASE`. None fails that guard."""
    round: int | None = None
    """The review round that the actor saw, for `Guard.ROUND`. None fails that guard."""
    reviewer: str | None = None
    """The reviewer, for `Guard.UNOPENED` and `Guard.OPENED`. None fails them while another has the job open."""
    seq: int | None = None
    """The `seq` of the job that the actor saw, for `Guard.SEEN`; None for any."""
    settled_steps: int | None = None
    """Number of steps of the run's current round that the actor saw ended, for `Guard.QUIET`. None fails that guard."""
    changes: Mapping[str, Any] = {}
    """New values of columns of the job, in addition to those that the transition itself clears and increments."""
    after_seconds: Mapping[str, float] = {}
    """New values of columns that hold a time, in seconds from the store's present time."""
    decision: Decision | None = None
    """The decision to record for the job's round. A round has at most one; `undo` begins a new round."""
    vote: Decision | None = None
    """The vote to record for the job's round, which has at most one for each reviewer."""
    note: Mapping[str, Any] = {}
    """Additional data for the event. It changes no column."""


class Jobs(Protocol):
    """Jobs and their events.

    Each change is one transaction: the guarded update, its event, its decision, and its deliveries. The end of a job
    creates a delivery for each of its targets, unless the job was cancelled. A run that ends in `fail` cancels all of
    its steps that have not ended, at every depth; the end of a step wakes its run if that is parked.
    """

    async def insert(
        self,
        job: Job,
        *,
        actor: str,
        verb: InitialVerb = "submit",
        due_seconds: float = 0,
        lease_seconds: float | None = None,
    ) -> Job:
        """Insert a job and return it as committed, with the times that the store has set.

        If the same user has a job with the same `client_id` and door, or with the same `idempotency_key`, return that
        job and insert nothing. A key becomes free again 24 hours after its job was created, and when its job has failed
        with a retryable error. Raises IdTaken if another user's job has the key in Redis that `client_id` names.

        Args:
            job: The new job. Its `created_at`, `updated_at`, `due_at` and `lease_until` are ignored.
            actor: The actor of the first event.
            verb: The verb of the first event. A job that begins with `hit` or `refuse` has ended already.
            due_seconds: How long to wait until the job may be claimed.
            lease_seconds: How long the lease lasts whose token is `job.lease`; None for a job without a lease.
        """
        ...

    async def existing(self, job: Job) -> Job | None:
        """Return the job that `insert` would return instead of inserting `job`; None if it would insert it."""
        ...

    async def insert_ended(self, job: Job, *, actor: str, verbs: Sequence[str]) -> Job:
        """Insert a job that has ended already, with one event that stands for all `verbs`. Return it as committed.

        Use this for a job that may have been stored before: an earlier write may have been committed, although its
        result is not known. As its id is unique, it is not stored twice.
        """
        ...

    def log_call(
        self, job: Job, *, actor: str, verbs: Sequence[str], at_once: bool = False
    ) -> Awaitable[asyncio.Future[int]]:
        """Queue the insertion of a waiting call that has ended and was never stored, with an event for all `verbs`.

        It is written together with others: some milliseconds later, or `at_once` if someone waits for that. Return a
        future of its time of creation, in microseconds. The call itself waits only while too many rows are queued. The
        future stays pending while the database is away, for as long as that takes.

        Raises:
            Overloaded: Too many rows are queued, and have been for too long; or the store is closed.
            ValueError: The job has a value that only a job has which was stored before it ended, such as an
                idempotency key, a lease, or a receiver.
        """
        ...

    async def transition(self, job_id: str, *steps: TransitionRequest) -> Job:
        """Make the transitions `steps` in order, all of them or none, and return the job after the last one.

        Raises:
            Stale: A guard does not hold, or the job is not in a status in which the verb is allowed. The message names
                the present status, and the decision or the reviewer that was first.
            JobNotFound: There is no such job.
        """
        ...

    def observe(self, listener: TransitionListener) -> None:
        """Call `listener` after each `transition` and `claim` of this process, with the job and what was requested."""
        ...

    async def claim(
        self, *, actor: str, lease: str, limit: int, lease_seconds: float, turn: Turn = FIRST_TURN
    ) -> list[Job]:
        """Claim up to `limit` due jobs of the lane `later`, and return them; none only if no job can be claimed.

        All of them have the same priority, the highest of a job that can be claimed. The users that have such jobs
        take turns: up to MAX_USERS_OF_CLAIM of them, by id, those after `turn.after_user` first, get an equal share of
        `limit`, each for the jobs that became due first. The list is in this order: user by user.

        Each claimed job gets the lease token `lease` for `lease_seconds`, and its attempt is incremented. Concurrent
        calls never claim the same job.
        """
        ...

    async def renew(self, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
        """Extend leases, given as job id → token, to `lease_seconds` from now.

        Return the ids of the jobs that still have that lease; all others have lost it.
        """
        ...

    async def get(self, job_id: str) -> Job | None:
        """Return the job, or None if there is none with this id."""
        ...

    async def by_client_id(self, user_id: int, client_id: str) -> Job | None:
        """Return the user's newest job with this `client_id`, whatever its door, or None."""
        ...

    async def statuses(self, job_ids: Sequence[str]) -> dict[str, tuple[Status, int]]:
        """Return status and `seq` of the jobs that exist, by id. There may be any number of ids."""
        ...

    async def list(self, filters: JobFilter) -> Page[Job]:
        """Return a page of jobs, ordered by id."""
        ...

    async def count(self, filters: JobFilter, *, at_most: int) -> int:
        """Return the number of jobs that match, but stop counting at `at_most`; `offset` and `limit` do not matter."""
        ...

    async def backlog(self, user_id: int, *, at_most: int) -> Backlog:
        """Return the user's unfinished jobs and their bytes, but stop counting at `at_most` jobs of each status."""
        ...

    async def queue_depths(self, *, at_most: int) -> list[JobQueueDepth]:
        """Return the due jobs that no worker has claimed, by the role of their owners, but count at most that many."""
        ...

    async def events(self, job_id: str) -> list[Event]:
        """Return all events of a job, in order; an empty list if there is no such job."""
        ...

    async def lapsed(self, limit: int) -> list[Job]:
        """Return up to `limit` jobs whose lease has run out, so that `lapse` may be requested for them."""
        ...

    async def due_for_release(self, limit: int) -> list[Job]:
        """Return up to `limit` held jobs with a verdict whose `release_at` has come."""
        ...

    async def overdue(self, limit: int) -> list[Job]:
        """Return up to `limit` held jobs without a verdict whose review deadline has passed."""
        ...

    async def purge(self, older_than_seconds: float, limit: int) -> int:
        """Delete up to `limit` jobs that ended longer ago than that, with all records of them; return how many.

        Jobs with a delivery that is due, steps of a run that has not ended, and lines of such a batch stay. What the
        jobs used is still counted by `UsageRecords.report`.
        """
        ...


class Store(Protocol):
    """The persistent state of a deployment, shared by all of its processes."""

    @property
    def jobs(self) -> Jobs:
        """Jobs and their events."""
        ...

    @property
    def runs(self) -> Runs:
        """Steps and function calls of runs."""
        ...

    @property
    def reviews(self) -> Reviews:
        """Held answers, votes and bulk decisions."""
        ...

    @property
    def review_queues(self) -> ReviewQueues:
        """Review queues and reasons."""
        ...

    @property
    def objects(self) -> UpstreamObjects:
        """Objects that upstreams store."""
        ...

    @property
    def deliveries(self) -> Deliveries:
        """Deliveries of results."""
        ...

    @property
    def departures(self) -> Departures:
        """Jobs whose waiting callers have left."""
        ...

    @property
    def receipts(self) -> Receipts:
        """Receipts of decisions, and figures of reviews."""
        ...

    @property
    def erasures(self) -> Erasures:
        """Erasures of users."""
        ...

    @property
    def people(self) -> People:
        """Users and tokens."""
        ...

    @property
    def sign_ins(self) -> SignIns:
        """Failed sign-ins."""
        ...

    @property
    def catalog(self) -> Catalog:
        """Models and upstream keys."""
        ...

    @property
    def usage(self) -> UsageRecords:
        """Prices and usage."""
        ...

    @property
    def library(self) -> Library:
        """Prompts, pipelines and functions."""
        ...

    @property
    def limits(self) -> Limits:
        """Limits and counters."""
        ...

    @property
    def views(self) -> SavedViews:
        """Views of pages that users have saved."""
        ...

    @property
    def streams(self) -> Streams:
        """Streams and their leads."""
        ...

    @property
    def secrets(self) -> Secrets:
        """Sealed secrets."""
        ...

    @property
    def model_logs(self) -> ModelLogs:
        """Logs of models."""
        ...

    @property
    def policies(self) -> Policies:
        """Named review policies."""
        ...

    @property
    def budgets(self) -> Budgets:
        """Error budgets and planted items."""
        ...

    @property
    def files(self) -> Files:
        """Files of users."""
        ...

    @property
    def batches(self) -> Batches:
        """Batches and the jobs of their lines."""
        ...

    @property
    def audit(self) -> Audit:
        """The audit log."""
        ...

    async def start(self) -> None:
        """Open the store. Called once, before all other methods except `migrate` and `listen`.

        Raises:
            SchemaOutdated: There is no database, `migrate` must be called first, or a newer version must be installed.
            Overloaded: The database does not answer.
        """
        ...

    async def migrate(self) -> None:
        """Create the schema, or bring it up to date. One process at a time does so; the others wait.

        A newer schema that this version works with stays as it is. Raises SchemaOutdated for another one.
        """
        ...

    async def check_schema(self) -> None:
        """Raise SchemaOutdated if another process has migrated the schema to one that this version cannot use.

        Raises Overloaded if the database does not answer.
        """
        ...

    async def is_ready(self) -> bool:
        """Return True if the store answers within two seconds. Never raises."""
        ...

    async def versions(self) -> dict[str, int]:
        """Return a number for each `CachedTopic`. It grows with each change, so a process sees that its copy is old."""
        ...

    async def changed(self, topic: Topic, change: AuditChange | None = None) -> None:
        """Increment the version of `topic`, notify the listeners of all processes, and record `change` in the audit."""
        ...

    def listen(self, listener: Listener) -> None:
        """Call `listener(topic, name)` for each committed change, of this process or another one.

        `job` and `due` come with the id of a job that has changed, and that waits for a worker; `delivery` with the
        kind of a due delivery. `any` means that anything may have changed. Notifications may be lost, repeated or late:
        a listener polls as well. It must not block; its exceptions are logged.
        """
        ...

    async def close(self) -> None:
        """Write what is queued, notify other processes of it, and release all connections."""
        ...
