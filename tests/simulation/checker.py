"""Checker of the laws: checks every transaction of the store, and everything that a caller or a receiver sees.

The checker knows the transitions and what it has observed; it does not know the guards of the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from signoff.core.access import Caller, may_review
from signoff.core.cache import CacheEntry
from signoff.core.delivery import Delivery
from signoff.core.dialects.answer import as_completion
from signoff.core.dialects.edited_answer import edited_answer
from signoff.core.job import Decision, Event, Job
from signoff.core.transitions import TRANSITIONS
from signoff.errors import SignoffError
from signoff.store import TransitionRequest
from simulation.history import History
from simulation.loop import Violation, World
from simulation.tables import Tables, Tx

FENCED = {"release", "retry", "hold", "succeed", "fail"}
REVIEWS = {"open", "renew", "leave", "draft", "assign", "escalate", "vote", "decide"}
RELEASES = {"approve", "redo", "reject"}
RENEWED = {"lease_until"}
DAY_US = 24 * 3600 * 1_000_000
COLUMNS = frozenset(Job.__struct_fields__)


class Checker:
    """Observer that checks each transaction before its commit, and ends the run at the first broken law."""

    def __init__(self, world: World, history: History, tables: Tables, *, retention_seconds: float | None) -> None:
        self._world = world
        self._history = history
        self._tables = tables
        self._retention_seconds = retention_seconds
        self._replayed: dict[str, dict[str, Any]] = {}
        self._holders: dict[str, str] = {}
        self._verdicts: dict[tuple[str, int], Decision] = {}
        self._cancelled = dict[str, None]()
        self._ends: dict[str, tuple[str, bytes | None]] = {}
        self._keys: dict[tuple[int, str], list[str]] = {}
        self._gone = set[str]()
        self._successes: dict[str, int] = {}
        self._purged: dict[str, None] = {}
        self._cached: dict[bytes, CacheEntry] = {}
        self._now_us = 0
        tables.before_commit = self.before_commit

    def law(self, holds: bool, law: str, *about: object) -> None:
        """End the run with `law` and the facts in `about` if `holds` is false."""
        if not holds:
            self._world.fail(Violation(f"{law}: {about!r}"))

    # Writes

    def before_commit(self, tx: Tx) -> None:
        """Check one transaction, just before it is committed."""
        self.law(tx.now >= self._now_us, "the store's clock goes forward", tx.now)
        self._now_us = tx.now
        for job, verb in tx.inserted:
            self._check_insert(tx, job, verb)
        for before, request, after in tx.transitions:
            self._check_transition(tx, before, request, after)
        self._check_renewals(tx)
        for event in tx.events:
            self._check_event(tx, event)
        for delivery in tx.deliveries.values():
            self._check_delivery(tx, delivery)
        for job_id in tx.purged:
            self._check_purge(tx, job_id)

    def _check_insert(self, tx: Tx, job: Job, verb: str) -> None:
        self._history.note("made", job.id, job.lane, verb, job.status)
        self._history.counts[f"verb {verb}"] += 1
        self.law(job.id not in self._tables.jobs, "no id is in two tables", job.id, verb)
        if job.lease is not None and not job.is_terminal:
            self._holders[job.id] = job.lease
        if job.is_terminal:
            self._check_end(tx, job, verb)
        if job.idempotency_key is not None:
            self._check_key(job, tx.now)
        if verb == "hit":
            self._check_hit(job)

    def _check_hit(self, job: Job) -> None:
        """Check that the cached answer was stored for the same user, path and target."""
        entry = self._cached.get(job.response or b"")
        same = entry is not None and (entry.user_id, entry.path, entry.target) == (job.user_id, job.path, job.target)
        self.law(same, "a hit is the user's own signed-off answer", job.id, job.response)
        self.law(_answers_request(job), "an answer is to what was asked", job.id, job.response)

    def _check_key(self, job: Job, now: int) -> None:
        earlier = self._keys.setdefault((job.user_id, job.idempotency_key or ""), [])
        for job_id in earlier:
            other = self._tables.jobs.get(job_id)
            is_free = other is None or other.created_at < now - DAY_US or _is_retryable(other)
            self.law(is_free, "one key, one job", job.id, job_id)
        earlier.append(job.id)

    def _check_transition(self, tx: Tx, before: Job, request: TransitionRequest, after: Job) -> None:
        verb, transition = request.verb, TRANSITIONS[request.verb]
        self._history.note(verb, before.id, request.actor, after.status, after.seq)
        self.law(not before.is_terminal, "terminal is terminal", verb, before.id, before.status)
        is_permitted = before.status in transition.sources and after.status in transition.targets
        self.law(is_permitted, "only moves in MOVES", verb, before.id, before.status, after.status)
        self.law(after.seq == before.seq + 1, "every move is an event", verb, before.id)
        self.law(after.attempt <= after.max_attempts, "attempts are bounded", verb, after.id, after.attempt)
        self._check_lease(before, request, after, tx.now)
        if verb in REVIEWS:
            self._check_review(before, request, tx.now)
        if verb in RELEASES:
            self._check_release(before, request, after, tx)
        if verb == "undo":
            decision = self._verdicts.get((before.id, before.round))
            self.law(decision is not None and tx.now < (before.release_at or 0), "only what waits is undone", before.id)
        if verb == "expire":
            is_over = before.review_deadline is not None and before.review_deadline <= tx.now
            self.law(is_over and before.decision is None, "a review expires at its deadline", before.id)
        if before.response != after.response:
            self.law(verb in {"hold", "succeed", *RELEASES}, "an answer comes from a model or a person", verb, after.id)
            self.law(_answers_request(after), "an answer is to what was asked", after.id, after.response)
        if verb == "cancel":
            self._cancelled[before.id] = None
        if after.is_terminal:
            self._check_end(tx, after, verb)

    def _check_lease(self, before: Job, request: TransitionRequest, after: Job, now: int) -> None:
        verb, holder = request.verb, self._holders.get(before.id)
        if verb in FENCED:
            self.law(
                request.lease is not None and request.lease == holder, "a stale worker cannot settle", verb, before.id
            )
        if verb == "claim":
            self.law(holder is None, "a live lease is nobody else's", before.id, holder)
            self.law(before.due_at <= now, "nothing is claimed before its time", before.id)
        if verb == "lapse":
            ran_out = before.lease_until is not None and before.lease_until < now
            self.law(holder is not None and ran_out, "a lease lapses when it has run out", before.id)
        if after.lease is None:
            self._holders.pop(before.id, None)
        else:
            self._holders[before.id] = after.lease

    def _check_review(self, before: Job, request: TransitionRequest, now: int) -> None:
        self.law(
            request.round == before.round,
            "a reviewer decides about what they saw",
            request.verb,
            before.id,
            request.round,
        )
        self.law((before.id, before.round) not in self._verdicts, "one decision a round", request.verb, before.id)
        is_open = before.review_lease is not None and (before.review_lease_until or now) >= now
        is_free = not is_open or before.review_lease == request.reviewer
        self.law(is_free, "what one reviewer has open is not another's", request.verb, before.id)
        if request.verb == "decide" and request.decision is not None:
            self._verdicts[before.id, before.round] = request.decision

    def _check_release(self, before: Job, request: TransitionRequest, after: Job, tx: Tx) -> None:
        decision = self._verdicts.get((before.id, before.round))
        agrees = decision is not None and decision.verdict == request.verb
        self.law(agrees, "nothing held leaves without a verdict", request.verb, before.id)
        self.law((before.release_at or 0) <= tx.now, "a verdict takes effect at its time", before.id)
        edit = None if decision is None else decision.edit.response
        if request.verb == "approve":
            expected = before.response if edit is None else edited_answer(before, edit.encode())
            self.law(after.response == expected, "what was signed off is what leaves", before.id)

    def _check_end(self, tx: Tx, job: Job, verb: str) -> None:
        self.law(job.id not in self._ends, "one terminal status", job.id, verb)
        self._ends[job.id] = (job.status, job.response)
        self._holders.pop(job.id, None)
        expects_delivery = bool(job.deliver) and verb != "cancel"
        deliveries = [delivery for delivery in tx.deliveries.values() if delivery.job_id == job.id]
        self.law(len(deliveries) == expects_delivery, "the move that ends a job inserts its delivery", job.id, verb)
        if verb == "cancel":
            self._cancelled[job.id] = None
        if job.status == "success" and job.policy.may_hold and verb != "hit":
            decision = self._verdicts.get((job.id, job.round))
            is_signed_off = verb == "expire" or (decision is not None and decision.verdict == "approve")
            self.law(is_signed_off, "nothing held leaves without a verdict", job.id, verb)

    def _check_renewals(self, tx: Tx) -> None:
        """Check the changes that no transition made: only the end of a current lease may change."""
        transitioned = {after.id for _, _, after in tx.transitions} | {job.id for job, _ in tx.inserted}
        for job in tx.jobs.values():
            if job.id in transitioned:
                continue
            before = self._tables.jobs[job.id]
            changed = [name for name in COLUMNS if getattr(before, name) != getattr(job, name)]
            self.law({*changed} <= RENEWED, "every change is a move", job.id, changed)
            self.law(job.lease is not None and not job.is_terminal, "only a lease is renewed", job.id)
            self._replayed[job.id]["lease_until"] = job.lease_until

    def _check_event(self, tx: Tx, event: Event) -> None:
        data = msgspec.json.decode(msgspec.json.encode(event.data))
        row = self._replayed.setdefault(event.job_id, {})
        expected = row.get("seq", 0) + 1
        self.law(event.seq == expected and bool(event.actor), "events have no gaps", event.job_id, event.seq, expected)
        row |= {name: value for name, value in data.items() if name in COLUMNS}
        row |= {"seq": event.seq, "updated_at": event.at}
        after = tx.jobs[event.job_id]
        if after.seq == event.seq:
            wrong = [name for name, value in row.items() if _event_value(after, name) != value]
            self.law(not wrong, "replaying a job's events gives its row", event.job_id, event.verb, wrong)

    def _check_delivery(self, tx: Tx, delivery: Delivery) -> None:
        self.law(delivery.job_id not in self._cancelled, "nothing is delivered after a cancel", delivery.job_id)
        self.law(delivery.job_id in self._ends, "nothing is delivered before the end", delivery.job_id)
        before = self._tables.deliveries.get(delivery.id)
        self._history.note("delivery", delivery.id, delivery.state, delivery.attempt)
        if before is not None and delivery.state == "done":
            self.law(self._successes.get(delivery.id, 0) > 0, "what is done was taken", delivery.id)
        if delivery.state == "failed" and delivery.id not in self._gone:
            self.law(
                (delivery.last_error or "").find("Given up") >= 0,
                "what is given up says so",
                delivery.id,
                delivery.last_error,
            )

    def _check_purge(self, tx: Tx, job_id: str) -> None:
        job = self._tables.jobs[job_id]
        self._history.note("forgotten", job_id)
        is_old = self._retention_seconds is not None and job.updated_at <= tx.now - self._retention_seconds * 1e6
        self.law(job.is_terminal and is_old, "only what ended long ago is forgotten", job_id)
        undelivered = [
            delivery.id
            for delivery in self._tables.deliveries.values()
            if delivery.job_id == job_id and delivery.state == "due"
        ]
        self.law(not undelivered, "who waits to be told is told before a job is forgotten", job_id, undelivered)
        self._purged[job_id] = None

    def cached(self, entry: CacheEntry) -> None:
        """Check an entry of the response cache: its answer must be signed off."""
        self._history.note("kept", entry.key, entry.job_id)
        job = self._tables.jobs.get(entry.job_id)
        existed = job is not None or entry.job_id in self._purged
        self.law(existed or entry.target != "watched", "nothing held leaves without a verdict", entry.job_id)
        if job is not None and (job.is_terminal or job.policy.may_hold):  # other jobs end after their entry is stored
            is_signed_off = (job.status, job.response, job.user_id) == ("success", entry.answer, entry.user_id)
            self.law(is_signed_off, "what is kept is signed off", entry.job_id, job.status)
        self._cached[entry.answer] = entry

    # Observations of callers and receivers

    def accepted(self, job: Job) -> None:
        """Check that a job is committed once its caller was told that it is accepted."""
        self.law(job.id in self._tables.jobs or job.id in self._purged, "what was accepted is committed", job.id)

    def shown(self, caller: Caller, jobs: Sequence[Job]) -> None:
        """Check jobs that `caller` was shown."""
        for job in jobs:
            self._history.note("shown", caller.email, job.id, job.status, job.seq)
            if may_review(caller):
                continue
            self.law(job.user_id == caller.user_id, "a job is its owner's", job.id, caller.email)
            bare = job.response is None and job.draft is None and job.decision is None
            self.law(bare or job.status not in {"human", "fail"}, "nothing held is seen", job.id, caller.email)
            self.law(job.response is None or job.id in self._ends or job.status == "bot", "an answer is final", job.id)
            if job.is_terminal:
                self.law(self._ends[job.id][0] == job.status, "what ended stays ended", job.id)

    def answered(self, caller: Caller, job: Job, body: bytes | None) -> None:
        """Check the answer of a waiting call: if the job may be held, its answer must be signed off.

        `body` is None if the answer was streamed.
        """
        self._history.note("answered", caller.email, job.id, body)
        status, response = self._ends.get(job.id, ("unfinished", None))
        if job.cache == "hit":  # its row is stored after the answer is returned
            entry = self._cached.get(job.response or b"")
            self.law(entry is not None and entry.user_id == caller.user_id, "a hit is the user's own", job.id)
        elif job.policy.may_hold:
            self.law(status == "success", "nothing held leaves without a verdict", job.id, status)
        if status == "success" and body is not None and response is not None:
            same = body in {response, as_completion(response, job.target)}
            self.law(same, "a caller gets the answer that is recorded", job.id)

    def refused(self, email: str, operation: str, error: BaseException) -> None:
        """Check that an error is one that callers may see."""
        self._history.note("refused", email, operation, type(error).__name__)
        self.law(isinstance(error, SignoffError), "a caller never meets a fault of ours", email, operation, repr(error))

    def posted(self, message_id: str, url: str, body: bytes, status: int) -> None:
        """Check a message that a receiver got."""
        if status == 410:
            self._gone.add(message_id)
        data = msgspec.json.decode(body)["data"]
        job_id = data["job_id"]
        self._history.note("posted", message_id, data["status"], status)
        self.law(message_id == f"msg_{job_id}", "a delivery has one id", message_id, job_id)
        self.law(job_id not in self._cancelled, "nothing is delivered after a cancel", job_id)
        end, response = self._ends.get(job_id, ("unfinished", None))
        self.law(data["status"] == end, "nothing is delivered before the end", job_id, end)
        expected = None if end == "fail" or response is None else msgspec.json.decode(response)
        self.law(data["response"] == expected, "what is delivered is the answer", job_id)
        if 200 <= status < 300:
            self._successes[message_id] = self._successes.get(message_id, 0) + 1

    def at_end(self) -> None:
        """Check the tables after all work has ended."""
        self.law(not self._tables.unfinished, "lost is nothing", list(self._tables.unfinished))
        due = [delivery.id for delivery in self._tables.deliveries.values() if delivery.state == "due"]
        self.law(not due, "every delivery is taken or given up", due)
        for job in self._tables.jobs.values():
            self.law(self._ends.get(job.id) == (job.status, job.response), "terminal is terminal", job.id)


def _is_retryable(job: Job) -> bool:
    return job.status == "fail" and job.error is not None and job.error.retryable


def _answers_request(job: Job) -> bool:
    """Return True if the answer is to the request of `job`, or if a person wrote it."""
    response = msgspec.json.decode(job.response or b"null")
    if not isinstance(response, dict):
        return True
    question = msgspec.json.decode(job.body)["messages"][-1]["content"]
    words = response["choices"][0]["message"]["content"]
    return words.startswith(("edited ", "draft ")) or words.endswith(f" to {question}")


def _event_value(job: Job, name: str) -> Any:
    """Return the value of a column as events record it."""
    value = getattr(job, name)
    if name in {"metadata", "response"}:
        return None if value is None else msgspec.json.decode(value)
    return value if value is None or isinstance(value, str | int) else msgspec.json.decode(msgspec.json.encode(value))
