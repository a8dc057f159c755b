"""Tables of the in-memory store, and its transactions: an operation writes everything or nothing.

The functions of the SQL store make the rows, events, notifications and deliveries of a transition. This module does
only what the database itself would do: look rows up, compare them with the guards, and store them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Protocol, get_args

import msgspec
import sqlalchemy as sa

from signoff.core.access import Token, UpstreamKey, User
from signoff.core.audit import Actor, AuditChange, AuditEntry
from signoff.core.batch import Batch, StoredFile
from signoff.core.counters import Counter
from signoff.core.delivery import Delivery
from signoff.core.job import Decision, Event, FunctionCall, Job, Vote
from signoff.core.limits import Limit, LimitKind
from signoff.core.log import LogLine
from signoff.core.model import Model
from signoff.core.pipelines.composed import LibraryItem
from signoff.core.pipelines.function import Function
from signoff.core.price import Price
from signoff.core.reviews.budget_period import BudgetPeriod
from signoff.core.reviews.bulk import Bulk
from signoff.core.reviews.notices import Notice
from signoff.core.reviews.planted import CatchCount, PlantedItem
from signoff.core.reviews.queues import ReviewQueue, VoteRecord
from signoff.core.reviews.receipt import ReceiptDraft
from signoff.core.reviews.rules import ReviewPolicy
from signoff.core.saved_views import SavedView
from signoff.core.sign_in import SignInCount
from signoff.core.stream import Stream
from signoff.core.transitions import TRANSITIONS, Guard, Transition
from signoff.store import CachedTopic, Listener, Topic, TransitionRequest
from signoff.stores.batches_schema import jobs as jobs_table
from signoff.stores.calls import event_of_call, job_of_call
from simulation.receipts import Chain, append_receipts

# Columns of the unique indexes of jobs; a row that has NULL in one of them is in no such index.
UNIQUE = [tuple(column.name for column in index.columns) for index in jobs_table.indexes if index.unique]
Key = tuple[int, str]
Round = tuple[str, int]
CallKey = tuple[str, int, str]
VoteKey = tuple[str, int, str]


class BudgetLease(msgspec.Struct, kw_only=True):
    """Passes that a process has taken."""

    policy: str
    period: int
    granted: int
    used: int = 0
    until: int


class Tx(msgspec.Struct):
    """The writes of one transaction; none of them takes effect before the commit."""

    now: int
    changes: list[tuple[Topic, str]] = []
    jobs: dict[str, Job] = {}
    transitions: list[tuple[Job, TransitionRequest, Job]] = []
    inserted: list[tuple[Job, str]] = []
    events: list[Event] = []
    decisions: dict[Round, Decision] = {}
    votes: list[VoteRecord] = []
    blind: dict[VoteKey, Vote] = {}
    deliveries: dict[str, Delivery] = {}
    keys: dict[Key, str | None] = {}
    calls: dict[CallKey, FunctionCall] = {}
    purged: list[str] = []
    logged: set[str] = set()
    held_objects: set[str] = set()
    departures: dict[str, int] = {}
    returned: list[str] = []
    drafts: list[ReceiptDraft] = []
    caught: dict[tuple[str, int], bool] = {}

    def add_missing(self, table: sa.Table, row: dict[str, Any]) -> None:
        """Add a mark; which job created an object is derived from the jobs."""
        if table.name == "held_objects":
            self.held_objects.add(row["object_id"])

    def add_to_sum(self, table: sa.Table, group: tuple[Any, ...], amounts: tuple[int, ...]) -> None:
        """Add nothing: reports of these tables are computed from their jobs."""

    def at_end(self, function: Callable[[Any, list[Any]], None], item: object) -> None:
        """Add nothing: histograms of latencies are computed from their jobs, too."""

    def add(self, table: sa.Table, row: dict[str, Any]) -> None:
        """Add a row; the functions of the SQL store call this."""
        match table.name:
            case "jobs":
                self.jobs[row["id"]] = Job(**row)
            case "calls":
                call = SimpleNamespace(**row)
                self.jobs[call.id] = job_of_call(call)
                self.logged.add(call.id)
                self.events.append(event_of_call(call))
            case "events":
                self.events.append(Event(**row))
            case "deliveries":
                self.deliveries[row["id"]] = Delivery(**row)
            case "function_calls":
                self.calls[row["job_id"], row["round"], row["node"]] = FunctionCall(**row)
            case "used_keys":
                self.keys[row["user_id"], row["key"]] = row["job_id"]
            case name:
                raise KeyError(name)

    def flush(self) -> None:
        """Flush nothing, as no writes are delayed; the functions of the SQL store call this."""


Operation = Callable[[Tx], Any]


class Connection(Protocol):
    """A connection to the tables: it sends operations and receives change notifications."""

    def send(self, operation: Operation, *, writes: bool) -> asyncio.Future[Any]:
        """Return a future of the result of `operation`. Raises Overloaded once closed."""
        ...

    def listen(self, listener: Listener) -> None: ...
    def close(self) -> None: ...


# A request without a lease or a round matches no job, as NULL equals nothing in SQL.
GUARDS: dict[Guard, Callable[[Job, TransitionRequest, int], bool]] = {
    Guard.DUE: lambda job, request, now: job.lease is None and job.parked_at is None and job.due_at <= now,
    Guard.LEASE: lambda job, request, now: request.lease is not None and job.lease == request.lease,
    Guard.LAPSED: lambda job, request, now: (
        job.lease is not None and job.lease_until is not None and job.lease_until < now
    ),
    Guard.ROUND: lambda job, request, now: request.round is not None and job.round == request.round,
    Guard.SEEN: lambda job, request, now: request.seq in {None, job.seq},
    Guard.OPENED: lambda job, request, now: job.review_lease is not None and job.review_lease == request.reviewer,
    Guard.UNOPENED: lambda job, request, now: (
        job.review_lease is None
        or job.review_lease == request.reviewer
        or (job.review_lease_until is not None and job.review_lease_until < now)
    ),
    Guard.UNDECIDED: lambda job, request, now: job.release_at is None,
    Guard.DECIDED: lambda job, request, now: job.release_at is not None,
    Guard.UNRELEASED: lambda job, request, now: job.release_at is not None and job.release_at > now,
    Guard.RELEASED: lambda job, request, now: job.release_at is not None and job.release_at <= now,
    Guard.OVERDUE: lambda job, request, now: job.review_deadline is not None and job.review_deadline <= now,
    Guard.PARKED: lambda job, request, now: job.parked_at is not None,
}


class Tables:
    """The stored rows. `before_commit` is called with each transaction just before its writes take effect."""

    def __init__(self, transitions: Mapping[str, Transition] = TRANSITIONS) -> None:  # noqa: PLR0915 -- the tables
        self.transitions = transitions
        self.guards = GUARDS | {Guard.QUIET: self._is_quiet}
        self.jobs: dict[str, Job] = {}
        self.unfinished: dict[str, Job] = {}
        self.ended: dict[str, Job] = {}
        self.events: dict[str, list[tuple[Event, bytes]]] = {}
        self.decisions: dict[Round, tuple[Decision, int]] = {}
        self.votes: dict[VoteKey, VoteRecord] = {}
        self.blind: dict[VoteKey, Vote] = {}
        self.review_queues: dict[str, ReviewQueue] = {}
        self.reported_until: dict[str, int] = {}
        self.review_reasons: list[str] = []
        self.bulks: dict[str, tuple[Bulk, int]] = {}
        self.notices: dict[str, tuple[Notice, int, str | None]] = {}
        self.deliveries: dict[str, Delivery] = {}
        self.keys: dict[Key, str] = {}
        self.calls: dict[CallKey, FunctionCall] = {}
        self.by_client_id: dict[tuple[int, str, str], Job] = {}
        self.unique: dict[tuple[Any, ...], str] = {}
        self.users: dict[str, User] = {}
        self.tokens: dict[str, Token] = {}
        self.provider_accounts: dict[tuple[str, str], int] = {}
        self.sign_in_failures: dict[str, SignInCount] = {}
        self.models: dict[str, Model] = {}
        self.prices: dict[tuple[str, int], Price] = {}
        self.purged_jobs: list[Job] = []
        self.logged = set[str]()
        self.held_objects = set[str]()
        self.departures: dict[str, int] = {}
        self.receipts = Chain()
        self.erasures: dict[int, int | None] = {}
        self.key_fingerprints = set[str]()
        self.stale_attempts: list[Job] = []
        self.library_items: dict[int, dict[int, LibraryItem]] = {}
        self.last_item_id = 0
        self.labels: dict[tuple[int, str], int] = {}
        self.functions: dict[str, Function] = {}
        self.limits: dict[str, Limit] = {}
        self.counters: dict[str, Counter] = {}
        self.refusals: list[tuple[int, str, LimitKind, int, int]] = []
        self.views: dict[tuple[int, str, str], SavedView] = {}
        self.versions = dict.fromkeys(get_args(CachedTopic), 0)
        self.policies: dict[str, int] = {}
        self.policy_versions: dict[tuple[str, int], ReviewPolicy] = {}
        self.streams: dict[str, Stream] = {}
        self.leads: dict[str, tuple[str, int]] = {}
        self.sealed: dict[int, tuple[UpstreamKey, bytes]] = {}
        self.key_count = 0
        self.audit: list[AuditEntry] = []
        self.model_logs: dict[str, list[LogLine]] = {}
        self.budget_periods: dict[str, list[BudgetPeriod]] = {}
        self.budget_groups: dict[str, dict[str, int]] = {}
        self.budget_leases: dict[str, BudgetLease] = {}
        self.budget_audits: list[dict[str, Any]] = []
        self.planted_items: dict[int, tuple[int, PlantedItem]] = {}
        self.planted_jobs: dict[str, tuple[str, str]] = {}
        self.catch_counts: dict[tuple[str, str], CatchCount] = {}
        self.files: dict[str, StoredFile] = {}
        self.deleted_files: dict[str, int] = {}
        self.batches: dict[str, Batch] = {}
        self.listeners: list[Listener] = []
        self.before_commit: Callable[[Tx], None] = lambda _: None

    def run(self, operation: Operation, now: int) -> Any:
        """Run `operation` as a transaction at the time `now`, and return its result. An error changes nothing."""
        tx = Tx(now=now)
        result = operation(tx)
        self._check_ids(tx)
        self.before_commit(tx)
        self._commit(tx)
        for topic, name in tx.changes:
            for listener in self.listeners:
                listener(topic, name)
        return result

    def may(self, verb: str, job: Job, request: TransitionRequest, now: int) -> bool:
        """Return True if the status of `job` and the guards permit `verb`."""
        transition = self.transitions[verb]
        return job.status in transition.sources and all(
            self.guards[guard](job, request, now) for guard in transition.guards
        )

    def steps(self, run: Job) -> list[Job]:
        """Return the steps of the current round of `run`, oldest first."""
        jobs = [job for job in self.jobs.values() if (job.parent_id, job.parent_round) == (run.id, run.round)]
        return sorted(jobs, key=lambda job: job.id)

    def _is_quiet(self, job: Job, request: TransitionRequest, _now: int) -> bool:
        return request.settled_steps == sum(1 for step in self.steps(job) if step.is_terminal)

    def _check_ids(self, tx: Tx) -> None:
        """Raise IntegrityError if a primary or unique key exists already. Jobs and calls are tables of their own."""
        is_duplicate = any(
            job.id in self.jobs and (job.id in self.logged) == (job.id in tx.logged) for job, _ in tx.inserted
        ) or any(job_round in self.decisions for job_round in tx.decisions)
        if is_duplicate:
            raise sa.exc.IntegrityError("insert", {}, Exception("this primary key is used already"))
        added = dict[tuple[Any, ...], str]()
        for job in tx.jobs.values():
            for key in _unique_keys(job):
                holder = added.setdefault(key, self.unique.get(key, job.id))
                if holder != job.id:
                    message = f"this value of {key[0]} is that of {holder} already"
                    raise sa.exc.IntegrityError("insert", {}, Exception(message))

    def _commit(self, tx: Tx) -> None:
        for job in tx.jobs.values():
            self._store_job(job)
        self.logged |= tx.logged
        self.held_objects |= tx.held_objects
        for job_id in tx.returned:
            self.departures.pop(job_id, None)
        self.departures |= tx.departures
        for event in tx.events:
            self.events.setdefault(event.job_id, []).append((event, msgspec.json.encode(event.data)))
        for job_round, decision in tx.decisions.items():
            self.decisions[job_round] = (decision, tx.now)
        for vote in tx.votes:
            self.votes.setdefault((vote.job_id, vote.round, vote.reviewer), vote)
        self.blind |= tx.blind
        self.deliveries.update(tx.deliveries)
        self.calls.update(tx.calls)
        for key, job_id in tx.keys.items():
            if job_id is None:
                self.keys.pop(key, None)
            else:
                self.keys[key] = job_id
        append_receipts(self, tx)
        if tx.purged:
            self._purge(tx.purged)

    def _store_job(self, job: Job) -> None:
        self.jobs[job.id] = job
        self.unique |= dict.fromkeys(_unique_keys(job), job.id)
        if job.client_id is not None:
            self.by_client_id[job.user_id, job.client_id, job.door] = job
        if job.is_terminal:
            self.unfinished.pop(job.id, None)
            self.ended[job.id] = job
        else:
            self.unfinished[job.id] = job

    def _purge(self, ids: list[str]) -> None:
        purged = dict.fromkeys(ids)
        self.purged_jobs += (self.jobs[job_id] for job_id in ids)
        for job_id in ids:
            del self.jobs[job_id], self.ended[job_id], self.events[job_id]
        self.decisions = {key: row for key, row in self.decisions.items() if key[0] not in purged}
        self.votes = {key: vote for key, vote in self.votes.items() if key[0] not in purged}
        self.blind = {key: vote for key, vote in self.blind.items() if key[0] not in purged}
        self.departures = {name: left_at for name, left_at in self.departures.items() if name not in purged}
        self.deliveries = {name: row for name, row in self.deliveries.items() if row.job_id not in purged}
        self.by_client_id = {name: row for name, row in self.by_client_id.items() if row.id not in purged}
        self.unique = {key: job_id for key, job_id in self.unique.items() if job_id not in purged}
        self.calls = {key: row for key, row in self.calls.items() if key[0] not in purged}
        self.keys = {key: job_id for key, job_id in self.keys.items() if job_id not in purged}
        salts = self.receipts.salts
        self.receipts.salts = {key: salt for key, salt in salts.items() if key[0] not in purged}


def _unique_keys(job: Job) -> list[tuple[Any, ...]]:
    """Return the names and values of the columns of each unique index that `job` is in."""
    keys = [(names, *(getattr(job, name) for name in names)) for names in UNIQUE]
    return [key for key in keys if None not in key]


def bump(tables: Tables, tx: Tx, topic: Topic) -> None:
    """Increase the version of `topic`, and notify the listeners."""
    tables.versions[topic] += 1
    tx.changes.append((topic, ""))


def record(tables: Tables, tx: Tx, actor: Actor, change: AuditChange) -> None:
    """Add an entry to the audit log."""
    entry = {"id": len(tables.audit) + 1, "at": tx.now, "actor": actor.name, "client": actor.client}
    tables.audit.append(AuditEntry(**entry, **msgspec.structs.asdict(change)))


def next_state(transition: Transition, job: Job, request: TransitionRequest, now: int) -> Job:
    """Return `job` after a transition."""
    changes: dict[str, Any] = dict.fromkeys(transition.clears)
    changes |= {column: getattr(job, column) + amount for column, amount in transition.adds.items()}
    changes |= request.changes
    changes |= {column: now + round(seconds * 1_000_000) for column, seconds in request.after_seconds.items()}
    status = request.to or transition.targets[0]
    return msgspec.structs.replace(job, **(changes | {"status": status, "seq": job.seq + 1, "updated_at": now}))
