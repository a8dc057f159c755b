"""Checker of a round: compare what callers were told with the database after the round."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from faults.clients import request_name_in
from faults.history import Line, read
from faults.tables import CommitOrder, StoredJob, Tables
from faults.walk import Finding, check_events
from faults.wishes import MUST_FAIL, RETRY_AFTER
from signoff.core.job import Job

SECOND_US = 1_000_000
MAX_UNLOGGED_ROWS = 512
CLOCK_TOLERANCE_SECONDS = 5.0
UNKNOWN_OUTCOME = {None, *range(500, 600)}


class JobRecord(msgspec.Struct, frozen=True):
    """The data of a job that the checker keeps while it checks the other jobs."""

    id: str
    request_name: str
    status: str
    seq: int
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


class HistoryIndex:
    """The lines of a history, grouped by their type."""

    def __init__(self, path: Path) -> None:
        self.by_type: dict[str, list[Line]] = defaultdict(list)
        for line in read(path):
            self.by_type[line["what"]].append(line)
        self.requests = {line["wish"]: line for line in self.by_type["asked"]}
        self.responses: dict[str, list[Line]] = defaultdict(list)
        for line in self.by_type["told"]:
            self.responses[line["wish"]].append(line)
        self.began, self.ended = self.by_type["began"][0]["at"], self.by_type["ended"][-1]["at"]

    def accepted(self) -> dict[str, Line]:
        """Return the jobs that callers know of, each with the first line that named it."""
        first_lines: dict[str, Line] = {}
        for line in self.by_type["told"]:
            if line["job"] is not None:
                first_lines.setdefault(line["job"], line)
        return first_lines


class Lease(NamedTuple):
    """A lease of a job, from its claim to the transition that ended it.

    `answered` means that the transition stored an outcome; `ended_by_worker` that its worker made it.
    Times are in microseconds since 1970.
    """

    job: str
    actor: str
    began_at: int
    ended_at: int
    answered: bool
    ended_by_worker: bool


class Check(msgspec.Struct):
    """The result of a check: findings, and numbers for the report."""

    findings: list[Finding]
    jobs: dict[str, JobRecord]
    leases: list[Lease]
    verbs: Counter[str]
    """The number of transitions by verb."""
    unlogged: list[float]
    """For each answered call whose row was lost by a kill, the seconds between its answer and the kill."""
    recovered: int = 0
    commits: CommitOrder = {}
    """The order in which the events of jobs with the same request were committed."""


async def check(tables: Tables, history: Path) -> Check:
    """Check every job by itself, then apply the rules that compare jobs with the history."""
    index, result = HistoryIndex(history), Check([], {}, [], Counter(), [])
    async for page in tables.pages():
        for stored in page:
            _check_job(stored, index, result)
    repeated = [job.id for jobs in _by_request(result) if len(jobs) > 1 for job in jobs]
    result.commits = await tables.commit_order(repeated)
    for law in (
        _check_accepted,
        _check_duplicates,
        _check_answers,
        _check_verdicts,
        _check_cancellations,
        _check_webhooks,
        _check_copies,
        _check_redaction,
        _check_concurrency,
        _check_processes,
    ):
        result.findings += law(index, result)
    return result


def _check_job(stored: StoredJob, index: HistoryIndex, result: Check) -> None:
    job = stored.job
    if job.id in result.jobs:
        result.findings.append(Finding("duplicated", job.id, "two tables have it"))
    result.jobs[job.id] = _record_of(stored)
    result.verbs.update(event.verb for event in stored.events)
    result.findings += check_events(stored)
    result.findings += _check_times(stored, index)
    result.findings += _check_end(job)
    for event, next_event in zip(stored.events, stored.events[1:], strict=False):
        if event.verb == "claim":
            answered = next_event.verb in {"succeed", "hold", "fail"}
            ended_by_worker = answered or next_event.verb in {"retry", "release"}
            result.leases.append(
                Lease(job.id, event.actor, event.at, next_event.at, answered=answered, ended_by_worker=ended_by_worker)
            )
        wait = RETRY_AFTER.get(job.target, 0)
        if wait and (event.verb, next_event.verb) == ("retry", "claim") and next_event.at < event.at + wait * SECOND_US:
            result.findings.append(Finding("retry-after", job.id, f"asked again after {next_event.at - event.at} µs"))


def _record_of(stored: StoredJob) -> JobRecord:
    job = stored.job
    return JobRecord(
        id=job.id,
        request_name=request_name_in(job.body) or "nobody's",
        status=job.status,
        seq=job.seq,
        code=job.error.code if job.error else None,
        retryable=bool(job.error and job.error.retryable),
        key=job.idempotency_key,
        target=job.target,
        lane=job.lane,
        created_at=job.created_at,
        ended_at=job.updated_at if job.is_terminal else None,
        has_hook=any(target.kind == "webhook" for target in job.deliver),
        decisions={number: (decision.reviewer, decision.verdict) for number, decision in stored.decisions.items()},
        deliveries=[(delivery.id, delivery.state) for delivery in stored.deliveries if delivery.kind == "webhook"],
        copies=[(delivery.id, delivery.state) for delivery in stored.deliveries if delivery.kind == "redis"],
        is_copied=any(target.kind == "redis" for target in job.deliver),
    )


def _check_times(stored: StoredJob, index: HistoryIndex) -> Iterator[Finding]:
    """Check that event times come from the database's clock, however wrong the clock of a process is."""
    first, last = (
        (index.began - CLOCK_TOLERANCE_SECONDS) * SECOND_US,
        (index.ended + CLOCK_TOLERANCE_SECONDS) * SECOND_US,
    )
    if not all(first <= event.at <= last for event in stored.events):
        yield Finding("clock", stored.job.id, "something happened before the round began or after it ended")


def _check_end(job: Job) -> Iterator[Finding]:
    """Check that the job has ended, with an outcome that its model, a reviewer or the caller can cause."""
    model, code = job.target.partition("/")[0], job.error.code if job.error else None
    if not job.is_terminal:
        yield Finding("unfinished", job.id, f"it is {job.status} of {job.target}, attempt {job.attempt}")
    elif job.status == "success":
        if model in MUST_FAIL:
            yield Finding("unexpected", job.id, f"a job of {job.target} succeeded")
        if job.response is None or request_name_in(job.response) != request_name_in(job.body):
            yield Finding("unexpected", job.id, "the answer is not its own")
    elif code not in _allowed_codes(job, model):
        yield Finding("unexpected", job.id, f"{job.target} failed with {code}: {job.error}")


def _allowed_codes(job: Job, model: str) -> set[str | None]:
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


def _check_accepted(index: HistoryIndex, result: Check) -> Iterator[Finding]:
    """Check that each accepted job is stored, and each answered call is logged unless its server was killed."""
    missing = list[Line]()
    for job_id, line in index.accepted().items():
        if job_id in result.jobs:
            continue
        is_plain = line["way"] == "call" and line["key"] is None
        if is_plain and not index.requests[line["wish"]]["target"].startswith("held"):
            missing.append(line)
        else:
            yield Finding("lost", job_id, f"{line['way']} {line['wish']} was told of it, and it is not there")
    killed = {line["pid"]: line["at"] for line in index.by_type["killed"]}
    result.unlogged = [killed.get(line["pid"], line["at"]) - line["at"] for line in missing]
    yield from _check_unlogged(killed, missing)


def _check_unlogged(killed: Mapping[int, float], missing: Iterable[Line]) -> Iterator[Finding]:
    by_kill = Counter(line["pid"] for line in missing)
    for line in missing:
        if line["at"] > killed.get(line["pid"], 0):
            yield Finding("lost", line["job"], "the row of an answered call is missing, and nobody killed its server")
    for pid, count in by_kill.items():
        if count > MAX_UNLOGGED_ROWS:
            yield Finding("lost", str(pid), f"one kill cost {count} rows of answered calls")


def _check_duplicates(index: HistoryIndex, result: Check) -> Iterator[Finding]:
    """Check that each request created one job; a second one under its key is allowed only after a retryable failure."""
    for jobs in _by_request(result):
        name = jobs[0].request_name
        lines = index.responses[name]
        if name not in index.requests:
            yield Finding("unexpected", jobs[0].id, "nobody asked for it")
        if lines and all(
            line["status"] not in UNKNOWN_OUTCOME and line["status"] >= 400 and not line["job"] for line in lines
        ):
            yield Finding("unexpected", jobs[0].id, f"it was refused with {lines[0]['status']}")
        if not any(line["job"] for line in lines):
            result.recovered += 1
        ordered = sorted(jobs, key=lambda job: result.commits.get((job.id, 1), 0))
        for earlier, later in itertools.pairwise(ordered):
            # Times in events are not compared: a transaction that found the key free may have begun before the failure.
            failed, began = result.commits.get((earlier.id, earlier.seq)), result.commits.get((later.id, 1))
            is_after_failure = failed is not None and began is not None and failed <= began
            if not (earlier.key and earlier.status == "fail" and earlier.retryable and is_after_failure):
                yield Finding("duplicated", later.id, f"{name} is {earlier.id} already")


def _by_request(result: Check) -> Iterable[list[JobRecord]]:
    """Return the jobs in groups of those that the same request created."""
    by_name: dict[str, list[JobRecord]] = defaultdict(list)
    for job in result.jobs.values():
        by_name[job.request_name].append(job)
    return by_name.values()


def _check_answers(index: HistoryIndex, result: Check) -> Iterator[Finding]:
    """Check that each complete answer belongs to its caller and to a successful job, approved if it was held."""
    for line in index.by_type["told"]:
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
            and "approve" not in {verdict for _, verdict in job.decisions.values()}
        ):
            yield Finding("held-seen", job.id, "answered without a verdict")


def _check_verdicts(index: HistoryIndex, result: Check) -> Iterator[Finding]:
    """Check that each accepted verdict is stored under the round that its reviewer saw, and no refused one counts."""
    accepted = {_verdict_key(line) for line in index.by_type["reviewed"] if line["status"] != 409}
    for line in index.by_type["reviewed"]:
        job, round_, status = result.jobs.get(line["job"]), line["round"], line["status"]
        if job is None:
            yield Finding("lost", line["job"], "it was reviewed, and is not there")
            continue
        is_stored = job.decisions.get(round_) == (line["reviewer"], line["verdict"])
        if status == 200 and not is_stored:
            decision = job.decisions.get(round_)
            yield Finding("verdicts", job.id, f"{line['reviewer']} decided round {round_}; there stands {decision}")
        if status == 409 and is_stored and _verdict_key(line) not in accepted:
            yield Finding("verdicts", job.id, f"{line['reviewer']} was refused, and their verdict counts")
        if status not in {200, 409} and status not in UNKNOWN_OUTCOME:
            yield Finding("verdicts", job.id, f"a reviewer was told {status}")


def _verdict_key(line: Line) -> tuple[str, int, str]:
    """Return the job, round and reviewer of the line; a reviewer may send the same verdict twice."""
    return line["job"], line["round"], line["reviewer"]


def _check_cancellations(index: HistoryIndex, result: Check) -> Iterator[Finding]:
    for line in index.by_type["cancelled"]:
        job = result.jobs.get(line["job"])
        if line["status"] == 200 and (job is None or not job.was_cancelled):
            yield Finding("stale", line["job"], f"it was cancelled, and is {job and (job.status, job.code)}")


def _check_webhooks(index: HistoryIndex, result: Check) -> Iterator[Finding]:
    """Check that each end with a webhook is delivered at least once, with one id and body; a cancelled one never."""
    by_job: dict[str, list[Line]] = defaultdict(list)
    for line in index.by_type["hooked"]:
        by_job[line["job"]].append(line)
    for job in result.jobs.values():
        lines = by_job.pop(job.id, [])
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
        if lines and job.ended_at and lines[0]["at"] * SECOND_US < job.ended_at - SECOND_US:
            yield Finding("undelivered", job.id, "it was told before it had ended")
    for job_id in by_job:
        yield Finding("unexpected", job_id, "told of a job that is not there")


def _check_copies(index: HistoryIndex, result: Check) -> Iterator[Finding]:
    """Check that each result of a queued job is copied to Redis, however long Redis was down."""
    for job in result.jobs.values():
        is_expected = job.is_copied and not job.was_cancelled
        if job.copies != ([(f"msg_{job.id}_redis", "done")] if is_expected else []):
            yield Finding("undelivered", job.id, f"its copy in Redis: {job.copies}")


def _check_redaction(index: HistoryIndex, result: Check) -> Iterator[Finding]:
    for line in index.by_type["looked"]:
        if line["seen"]:
            yield Finding("held-seen", line["job"], f"somebody who may not review saw it through {line['way']}")


def _check_concurrency(index: HistoryIndex, result: Check) -> Iterator[Finding]:
    """Check that no worker has more jobs than its limit; leases that were taken from a worker do not count."""
    limit = index.by_type["began"][0]["concurrency"]
    changes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for lease in (lease for lease in result.leases if lease.ended_by_worker):
        changes[lease.actor] += [(lease.began_at, 1), (lease.ended_at, -1)]
    for actor, actor_changes in changes.items():
        count = max(itertools.accumulate(change for _, change in sorted(actor_changes)))
        if count > limit:
            yield Finding("caps", actor, f"{count} jobs at a time; {limit} were allowed")


def _check_processes(index: HistoryIndex, result: Check) -> Iterator[Finding]:
    """Check that no process ended by itself, every fault could be run, and one process wrote to the file at a time."""
    for line in index.by_type["vanished"]:
        yield Finding("process", line["name"], f"it ended by itself:\n{line['log']}")
    for line in index.by_type["broken"]:
        yield Finding("harness", line["name"], line["error"])
    for line in index.by_type["breach"]:
        yield Finding("writers", line["name"], f"{line['broken']}, {line['times']} times")
    for line in index.by_type["undrained"]:
        yield Finding("unfinished", "queues", f"not empty after {line['seconds']:.0f} s: {line['backlog']}")
