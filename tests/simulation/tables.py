"""Tables of the in-memory store, and its transactions: an operation writes everything or nothing.

The functions of the SQL store make the rows, events, notifications and deliveries of a transition. This module does
only what the database itself would do: look rows up, compare them with the guards, and store them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa

from signoff.core.access import Token, UpstreamKey, User
from signoff.core.delivery import Delivery
from signoff.core.job import TRANSITIONS, Decision, Event, FunctionCall, Guard, Job, Transition
from signoff.core.limits import Counter, Limit
from signoff.core.log import LogLine
from signoff.core.model import Model
from signoff.core.pipelines.composed import LibraryItem
from signoff.core.pipelines.function import Function
from signoff.core.price import Price
from signoff.core.stream import Stream
from signoff.store import Listener, Topic, TransitionRequest

Key = tuple[int, str]
Round = tuple[str, int]
Place = tuple[str, int, str]


class Tx(msgspec.Struct):
    """The writes of one transaction; none of them takes effect before the commit."""

    now: int
    changes: list[tuple[Topic, str]] = []
    jobs: dict[str, Job] = {}
    moves: list[tuple[Job, TransitionRequest, Job]] = []
    made: list[tuple[Job, str]] = []
    events: list[Event] = []
    decisions: dict[Round, Decision] = {}
    deliveries: dict[str, Delivery] = {}
    keys: dict[Key, str | None] = {}
    calls: dict[Place, FunctionCall] = {}
    forgotten: list[str] = []

    def add(self, table: sa.Table, row: dict[str, Any]) -> None:
        """Add a row; the functions of the SQL store call this."""
        match table.name:
            case "jobs":
                self.jobs[row["id"]] = Job(**row)
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
        """Do nothing; the functions of the SQL store call this, but no writes are delayed here."""


Operation = Callable[[Tx], Any]


class Way(Protocol):
    """A connection to the tables: it sends operations and receives change notifications."""

    def send(self, operation: Operation, *, writes: bool) -> asyncio.Future[Any]:
        """Return a future of the result of `operation`. Raises Overloaded once closed."""
        ...

    def listen(self, listener: Listener) -> None: ...
    def close(self) -> None: ...


# A request without a lease or a round matches no job, as NULL equals nothing in SQL.
GUARDS: dict[Guard, Callable[[Job, TransitionRequest, int], bool]] = {
    Guard.DUE: lambda job, step, now: job.lease is None and job.parked_at is None and job.due_at <= now,
    Guard.LEASE: lambda job, step, now: step.lease is not None and job.lease == step.lease,
    Guard.LAPSED: lambda job, step, now: (
        job.lease is not None and job.lease_until is not None and job.lease_until < now
    ),
    Guard.ROUND: lambda job, step, now: step.round is not None and job.round == step.round,
    Guard.UNOPENED: lambda job, step, now: (
        job.review_lease is None
        or job.review_lease == step.reviewer
        or (job.review_lease_until is not None and job.review_lease_until < now)
    ),
    Guard.UNDECIDED: lambda job, step, now: job.release_at is None,
    Guard.DECIDED: lambda job, step, now: job.release_at is not None,
    Guard.UNRELEASED: lambda job, step, now: job.release_at is not None and job.release_at > now,
    Guard.RELEASED: lambda job, step, now: job.release_at is not None and job.release_at <= now,
    Guard.OVERDUE: lambda job, step, now: job.review_deadline is not None and job.review_deadline <= now,
    Guard.PARKED: lambda job, step, now: job.parked_at is not None,
}


class Tables:
    """The stored rows. `committed` is called with each transaction just before its writes take effect."""

    def __init__(self, moves: Mapping[str, Transition] = TRANSITIONS) -> None:
        self.moves = moves
        self.guards = GUARDS | {Guard.QUIET: self._is_quiet}
        self.jobs: dict[str, Job] = {}
        self.unfinished: dict[str, Job] = {}
        self.ended: dict[str, Job] = {}
        self.events: dict[str, list[tuple[Event, bytes]]] = {}
        self.decisions: dict[Round, tuple[Decision, int]] = {}
        self.deliveries: dict[str, Delivery] = {}
        self.keys: dict[Key, str] = {}
        self.calls: dict[Place, FunctionCall] = {}
        self.named: dict[Key, Job] = {}
        self.users: dict[str, User] = {}
        self.tokens: dict[str, Token] = {}
        self.models: dict[str, Model] = {}
        self.prices: dict[tuple[str, int], Price] = {}
        self.past: list[Job] = []
        self.wasted: list[Job] = []
        self.composed: dict[int, dict[int, LibraryItem]] = {}
        self.composed_ids = 0
        self.labels: dict[tuple[int, str], int] = {}
        self.functions: dict[str, Function] = {}
        self.limits: dict[str, Limit] = {}
        self.counters: dict[str, Counter] = {}
        topics = ("models", "people", "prices", "limits", "cache", "compositions", "functions", "streams")
        self.versions = dict.fromkeys(topics, 0)
        self.streams: dict[str, Stream] = {}
        self.leads: dict[str, tuple[str, int]] = {}
        self.sealed: dict[int, tuple[UpstreamKey, bytes]] = {}
        self.key_count = 0
        self.model_logs: dict[str, list[LogLine]] = {}
        self.listeners: list[Listener] = []
        self.committed: Callable[[Tx], None] = lambda _: None

    def run(self, operation: Operation, now: int) -> Any:
        """Run `operation` as a transaction at the time `now`, and return its result. An error changes nothing."""
        tx = Tx(now=now)
        result = operation(tx)
        self._check_ids(tx)
        self.committed(tx)
        self._commit(tx)
        for topic, name in tx.changes:
            for listener in self.listeners:
                listener(topic, name)
        return result

    def may(self, verb: str, job: Job, step: TransitionRequest, now: int) -> bool:
        """Return True if the status of `job` and the guards permit `verb`."""
        move = self.moves[verb]
        return job.status in move.sources and all(self.guards[guard](job, step, now) for guard in move.guards)

    def steps(self, run: Job) -> list[Job]:
        """Return the steps of the current round of `run`, oldest first."""
        jobs = [job for job in self.jobs.values() if (job.parent_id, job.parent_round) == (run.id, run.round)]
        return sorted(jobs, key=lambda job: job.id)

    def _is_quiet(self, job: Job, step: TransitionRequest, _now: int) -> bool:
        return step.settled_steps == sum(1 for each in self.steps(job) if each.is_terminal)

    def _check_ids(self, tx: Tx) -> None:
        """Raise IntegrityError if a primary key exists already."""
        twice = any(job.id in self.jobs for job, _ in tx.made) or any(place in self.decisions for place in tx.decisions)
        if twice:
            raise sa.exc.IntegrityError("insert", {}, Exception("this primary key is used already"))

    def _commit(self, tx: Tx) -> None:
        for job in tx.jobs.values():
            self._keep(job)
        for event in tx.events:
            self.events.setdefault(event.job_id, []).append((event, msgspec.json.encode(event.data)))
        for place, decision in tx.decisions.items():
            self.decisions[place] = (decision, tx.now)
        self.deliveries.update(tx.deliveries)
        self.calls.update(tx.calls)
        for key, job_id in tx.keys.items():
            if job_id is None:
                self.keys.pop(key, None)
            else:
                self.keys[key] = job_id
        if tx.forgotten:
            self._forget(tx.forgotten)

    def _keep(self, job: Job) -> None:
        self.jobs[job.id] = job
        if job.client_id is not None:
            self.named[job.user_id, job.client_id] = job
        if job.is_terminal:
            self.unfinished.pop(job.id, None)
            self.ended[job.id] = job
        else:
            self.unfinished[job.id] = job

    def _forget(self, ids: list[str]) -> None:
        gone = dict.fromkeys(ids)
        self.past += (self.jobs[job_id] for job_id in ids)
        for job_id in ids:
            del self.jobs[job_id], self.ended[job_id], self.events[job_id]
        self.decisions = {place: kept for place, kept in self.decisions.items() if place[0] not in gone}
        self.deliveries = {name: kept for name, kept in self.deliveries.items() if kept.job_id not in gone}
        self.named = {name: kept for name, kept in self.named.items() if kept.id not in gone}
        self.calls = {place: kept for place, kept in self.calls.items() if place[0] not in gone}
        self.keys = {key: job_id for key, job_id in self.keys.items() if job_id not in gone}


def bump(tables: Tables, tx: Tx, topic: Topic) -> None:
    """Increase the version of `topic`, and notify the listeners."""
    tables.versions[topic] += 1
    tx.changes.append((topic, ""))


def after(move: Transition, job: Job, step: TransitionRequest, now: int) -> Job:
    """Return `job` after a transition."""
    changes: dict[str, Any] = dict.fromkeys(move.clears)
    changes |= {column: getattr(job, column) + more for column, more in move.adds.items()}
    changes |= step.changes
    changes |= {column: now + round(seconds * 1_000_000) for column, seconds in step.after_seconds.items()}
    status = step.to or move.targets[0]
    return msgspec.structs.replace(job, **(changes | {"status": status, "seq": job.seq + 1, "updated_at": now}))
