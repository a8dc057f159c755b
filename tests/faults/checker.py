"""Checker of a round: compare what callers were told with the database after the round."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from faults.clients import wish_in
from faults.history import Line, read
from faults.tables import Tables, Told
from faults.walk import Finding, walk
from faults.wishes import MUST_FAIL, RETRY_AFTER
from signoff.core.job import Job

SECOND = 1_000_000
ROWS_BEHIND = 128
CLOCK_SECONDS = 5.0
UNKNOWN = {None, *range(500, 600)}


class Kept(msgspec.Struct, frozen=True):
    """The data of a job that the checker keeps while it checks the other jobs."""

    id: str
    wish: str
    status: str
    code: str | None
    retryable: bool
    key: str | None
    target: str
    lane: str
    created_at: int
    ended_at: int | None
    has_hook: bool
    decisions: dict[int, tuple[str, str]]
    """Reviewer and verdict, by round number."""
    deliveries: list[tuple[str, str]]
    """Id and state of each webhook delivery."""
    copies: list[tuple[str, str]]
    """Id and state of each copy in Redis."""
    is_copied: bool

    @property
    def was_cancelled(self) -> bool:
        """Return True if the job was cancelled; nobody is notified of such an end."""
        return self.code == "cancelled"


class Book:
    """The lines of a history, grouped by their type."""

    def __init__(self, path: Path) -> None:
        self.by_what: dict[str, list[Line]] = defaultdict(list)
        for line in read(path):
            self.by_what[line["what"]].append(line)
        self.asked = {line["wish"]: line for line in self.by_what["asked"]}
        self.told: dict[str, list[Line]] = defaultdict(list)
        for line in self.by_what["told"]:
            self.told[line["wish"]].append(line)
        self.began, self.ended = self.by_what["began"][0]["at"], self.by_what["ended"][-1]["at"]

    def accepted(self) -> dict[str, Line]:
        """Return the jobs that callers know of, each with the first line that named it."""
        found: dict[str, Line] = {}
        for line in self.by_what["told"]:
            if line["job"] is not None:
                found.setdefault(line["job"], line)
        return found


class Lease(NamedTuple):
    """A lease of a job, from its claim to the transition that ended it.

    `answered` means that the transition stored an outcome; `kept` means that the worker itself made the transition.
    Times are in microseconds since 1970.
    """

    job: str
    actor: str
    began_at: int
    ended_at: int
    answered: bool
    kept: bool


class Check(msgspec.Struct):
    """The result of a check: findings, and numbers for the report."""

    findings: list[Finding]
    jobs: dict[str, Kept]
    leases: list[Lease]
    verbs: Counter[str]
    """The number of transitions by verb."""
    unlogged: list[float]
    """For each answered call whose row was lost by a kill, the seconds between its answer and the kill."""
    recovered: int = 0


async def check(tables: Tables, history: Path) -> Check:
    """Check every job by itself, then apply the rules that compare jobs with the history."""
    book, result = Book(history), Check([], {}, [], Counter(), [])
    async for page in tables.pages():
        for told in page:
            _look_at(told, book, result)
    for law in (_kept, _once, _answers, _verdicts, _cancels, _hooks, _copies, _veil, _caps, _machine):
        result.findings += law(book, result)
    return result


def _look_at(told: Told, book: Book, result: Check) -> None:
    job = told.job
    result.jobs[job.id] = _kept_of(told)
    result.verbs.update(event.verb for event in told.events)
    result.findings += walk(told)
    result.findings += _times(told, book)
    result.findings += _ends(job)
    for one, other in zip(told.events, told.events[1:], strict=False):
        if one.verb == "claim":
            answered = other.verb in {"succeed", "hold", "fail"}
            kept = answered or other.verb in {"retry", "release"}
            result.leases.append(Lease(job.id, one.actor, one.at, other.at, answered=answered, kept=kept))
        wait = RETRY_AFTER.get(job.target, 0)
        if wait and (one.verb, other.verb) == ("retry", "claim") and other.at < one.at + wait * SECOND:
            result.findings.append(Finding("retry-after", job.id, f"asked again after {other.at - one.at} µs"))


def _kept_of(told: Told) -> Kept:
    job = told.job
    return Kept(
        id=job.id,
        wish=wish_in(job.body) or "nobody's",
        status=job.status,
        code=job.error.code if job.error else None,
        retryable=bool(job.error and job.error.retryable),
        key=job.idempotency_key,
        target=job.target,
        lane=job.lane,
        created_at=job.created_at,
        ended_at=job.updated_at if job.is_terminal else None,
        has_hook=any(to.kind == "webhook" for to in job.deliver),
        decisions={number: (decision.reviewer, decision.verdict) for number, decision in told.decisions.items()},
        deliveries=[(one.id, one.state) for one in told.deliveries if one.kind == "webhook"],
        copies=[(one.id, one.state) for one in told.deliveries if one.kind == "redis"],
        is_copied=any(to.kind == "redis" for to in job.deliver),
    )


def _times(told: Told, book: Book) -> Iterator[Finding]:
    """Check that event times come from the database's clock, however wrong the clock of a process is."""
    first, last = (book.began - CLOCK_SECONDS) * SECOND, (book.ended + CLOCK_SECONDS) * SECOND
    if not all(first <= event.at <= last for event in told.events):
        yield Finding("clock", told.job.id, "something happened before the round began or after it ended")


def _ends(job: Job) -> Iterator[Finding]:
    """Check that the job has ended, with an outcome that its model, a reviewer or the caller can cause."""
    model, code = job.target.partition("/")[0], job.error.code if job.error else None
    if not job.is_terminal:
        yield Finding("unfinished", job.id, f"it is {job.status} of {job.target}, attempt {job.attempt}")
    elif job.status == "success":
        if model in MUST_FAIL:
            yield Finding("unexpected", job.id, f"a job of {job.target} succeeded")
        if job.response is None or wish_in(job.response) != wish_in(job.body):
            yield Finding("unexpected", job.id, "the answer is not its own")
    elif code not in _reasons(job, model):
        yield Finding("unexpected", job.id, f"{job.target} failed with {code}: {job.error}")


def _reasons(job: Job, model: str) -> set[str | None]:
    """Return the error codes with which the job may fail."""
    reasons: set[str | None] = {"cancelled"}
    if model in MUST_FAIL:
        reasons.add(MUST_FAIL[model])
    if job.attempt >= job.max_attempts:
        reasons.add("attempts_exhausted")
    if job.policy.may_hold:
        reasons.add("rejected")
    if job.lane == "now":  # calls have few attempts, and are not retried in the background
        reasons |= {"interrupted", "model_error", "model_cut", "model_garbled", "model_unreachable", "model_timed_out"}
    return reasons


def _kept(book: Book, result: Check) -> Iterator[Finding]:
    """Check that each accepted job is stored, and each answered call is logged unless its server was killed."""
    missing = list[Line]()
    for job_id, line in book.accepted().items():
        if job_id in result.jobs:
            continue
        is_plain = line["way"] == "call" and line["key"] is None
        if is_plain and not book.asked[line["wish"]]["target"].startswith("held"):
            missing.append(line)
        else:
            yield Finding("lost", job_id, f"{line['way']} {line['wish']} was told of it, and it is not there")
    killed = {line["pid"]: line["at"] for line in book.by_what["killed"]}
    result.unlogged = [killed.get(line["pid"], line["at"]) - line["at"] for line in missing]
    yield from _unlogged(killed, missing)


def _unlogged(killed: Mapping[int, float], missing: Iterable[Line]) -> Iterator[Finding]:
    by_kill = Counter(line["pid"] for line in missing)
    for line in missing:
        if line["at"] > killed.get(line["pid"], 0):
            yield Finding("lost", line["job"], "the row of an answered call is missing, and nobody killed its server")
    for pid, count in by_kill.items():
        if count > ROWS_BEHIND:
            yield Finding("lost", str(pid), f"one kill cost {count} rows of answered calls")


def _once(book: Book, result: Check) -> Iterator[Finding]:
    """Check that each request created one job; a second one under its key is allowed only after a retryable failure."""
    by_wish: dict[str, list[Kept]] = defaultdict(list)
    for job in result.jobs.values():
        by_wish[job.wish].append(job)
    for wish, jobs in by_wish.items():
        lines = book.told[wish]
        if wish not in book.asked:
            yield Finding("unexpected", jobs[0].id, "nobody asked for it")
        if lines and all(line["status"] not in UNKNOWN and line["status"] >= 400 and not line["job"] for line in lines):
            yield Finding("unexpected", jobs[0].id, f"it was refused with {lines[0]['status']}")
        if not any(line["job"] for line in lines):
            result.recovered += 1
        ordered = sorted(jobs, key=lambda job: job.created_at)
        for one, other in itertools.pairwise(ordered):
            # Times are the starts of transactions; the one that finds the key free may have begun before the failure.
            in_turn = (one.ended_at or 0) <= other.created_at + CLOCK_SECONDS * SECOND
            if not (one.key and one.status == "fail" and one.retryable and in_turn):
                yield Finding("duplicated", other.id, f"{wish} is {one.id} already")


def _answers(book: Book, result: Check) -> Iterator[Finding]:
    """Check that each complete answer belongs to its caller and to a successful job, approved if it was held."""
    for line in book.by_what["told"]:
        if not line.get("answered"):
            continue
        job = result.jobs.get(line["job"])
        if not line["right"]:
            yield Finding("unexpected", line["job"], "a caller got an answer that is not theirs")
        if job is not None and job.status != "success":
            yield Finding("stale", job.id, f"its caller has an answer, and it is {job.status}: {job.code}")
        if (
            job is not None
            and job.target.startswith("held")
            and "approve" not in {v for _, v in job.decisions.values()}
        ):
            yield Finding("held-seen", job.id, "answered without a verdict")


def _verdicts(book: Book, result: Check) -> Iterator[Finding]:
    """Check that each accepted verdict is stored under the round that its reviewer saw, and no refused one counts."""
    won = {_verdict_in(line) for line in book.by_what["reviewed"] if line["status"] != 409}
    for line in book.by_what["reviewed"]:
        job, round_, status = result.jobs.get(line["job"]), line["round"], line["status"]
        if job is None:
            yield Finding("lost", line["job"], "it was reviewed, and is not there")
            continue
        stands = job.decisions.get(round_) == (line["reviewer"], line["verdict"])
        if status == 200 and not stands:
            found = job.decisions.get(round_)
            yield Finding("verdicts", job.id, f"{line['reviewer']} decided round {round_}; there stands {found}")
        if status == 409 and stands and _verdict_in(line) not in won:
            yield Finding("verdicts", job.id, f"{line['reviewer']} was refused, and their verdict counts")
        if status not in {200, 409} and status not in UNKNOWN:
            yield Finding("verdicts", job.id, f"a reviewer was told {status}")


def _verdict_in(line: Line) -> tuple[str, int, str]:
    """Return the job, round and reviewer of the line; a reviewer may send the same verdict twice."""
    return line["job"], line["round"], line["reviewer"]


def _cancels(book: Book, result: Check) -> Iterator[Finding]:
    for line in book.by_what["cancelled"]:
        job = result.jobs.get(line["job"])
        if line["status"] == 200 and (job is None or not job.was_cancelled):
            yield Finding("stale", line["job"], f"it was cancelled, and is {job and (job.status, job.code)}")


def _hooks(book: Book, result: Check) -> Iterator[Finding]:
    """Check that each end with a webhook is delivered at least once, with one id and body; a cancelled one never."""
    got: dict[str, list[Line]] = defaultdict(list)
    for line in book.by_what["hooked"]:
        got[line["job"]].append(line)
    for job in result.jobs.values():
        lines = got.pop(job.id, [])
        if not job.has_hook or job.was_cancelled:
            if lines or job.deliveries:
                yield Finding("undelivered", job.id, f"told although nobody was to be: {job.deliveries}")
            continue
        if job.deliveries != [(f"msg_{job.id}", "done")]:
            yield Finding("undelivered", job.id, f"its end was not told: {job.deliveries}")
        if not any(line["taken"] for line in lines):
            yield Finding("undelivered", job.id, f"the receiver took none of {len(lines)} messages")
        if len({(line["id"], line["digest"]) for line in lines}) > 1:
            yield Finding("undelivered", job.id, "one end was told in different words")
        if lines and job.ended_at and lines[0]["at"] * SECOND < job.ended_at - SECOND:
            yield Finding("undelivered", job.id, "it was told before it had ended")
    for job_id in got:
        yield Finding("unexpected", job_id, "told of a job that is not there")


def _copies(book: Book, result: Check) -> Iterator[Finding]:
    """Check that each result of a queued job is copied to Redis, however long Redis was down."""
    for job in result.jobs.values():
        wanted = job.is_copied and not job.was_cancelled
        if job.copies != ([(f"msg_{job.id}_redis", "done")] if wanted else []):
            yield Finding("undelivered", job.id, f"its copy in Redis: {job.copies}")


def _veil(book: Book, result: Check) -> Iterator[Finding]:
    for line in book.by_what["looked"]:
        if line["seen"]:
            yield Finding("held-seen", line["job"], f"somebody who may not review saw it through {line['way']}")


def _caps(book: Book, result: Check) -> Iterator[Finding]:
    """Check that no worker has more jobs than its limit; leases that were taken from a worker do not count."""
    most = book.by_what["began"][0]["concurrency"]
    changes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for lease in (lease for lease in result.leases if lease.kept):
        changes[lease.actor] += [(lease.began_at, 1), (lease.ended_at, -1)]
    for actor, moments in changes.items():
        held = max(itertools.accumulate(change for _, change in sorted(moments)))
        if held > most:
            yield Finding("caps", actor, f"{held} jobs at a time; {most} were allowed")


def _machine(book: Book, result: Check) -> Iterator[Finding]:
    """Check that no process ended by itself, every fault could be run, and one process wrote to the file at a time."""
    for line in book.by_what["vanished"]:
        yield Finding("process", line["name"], f"it ended by itself:\n{line['log']}")
    for line in book.by_what["broken"]:
        yield Finding("harness", line["name"], line["error"])
    for line in book.by_what["breach"]:
        yield Finding("writers", line["name"], f"{line['broken']}, {line['times']} times")
    for line in book.by_what["undrained"]:
        yield Finding("unfinished", "queues", f"not empty after {line['seconds']:.0f} s: {line['backlog']}")
