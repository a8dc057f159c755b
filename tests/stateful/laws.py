"""Laws of the state machine, written independently of `TRANSITIONS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from signoff.core.job import TERMINAL, Event, Job
from signoff.core.reviews.receipt import VerdictReceipt
from signoff.core.transitions import replay
from signoff.store import TransitionRequest
from stateful.model import StoreContent, reviewer_of

ROW_ONLY = {"body", "deliver", "response"}  # stored only in the row, not in events


def is_lawful(  # noqa: C901 -- one case for each law
    job: Job, step: TransitionRequest, now: int
) -> bool:
    """Return True if the transition of `job` can be allowed at the time `now`."""
    is_its_round = step.round == job.round
    is_decided = job.release_at is not None
    match step.verb:
        case "claim":
            lawful = job.lane == "later" and job.lease is None and job.parked_at is None and job.due_at <= now
        case "succeed" | "fail" | "hold" | "retry" | "release" | "park":
            lawful = job.lease is not None and step.lease == job.lease
        case "lapse":
            was_last = job.lane == "now" or job.attempt >= job.max_attempts
            lawful = (job.lease_until or now) < now and step.to == ("fail" if was_last else "bot")
        case "renew":
            lawful = job.review_lease == step.reviewer and not is_decided and is_its_round
        case "vote" | "decide":
            is_seen = step.seq in {None, job.seq}
            lawful = is_seen and reviewer_of(job, now) in {None, step.reviewer} and not is_decided and is_its_round
        case "open" | "leave" | "draft" | "assign" | "escalate":
            lawful = reviewer_of(job, now) in {None, step.reviewer} and not is_decided and is_its_round
        case "undo":
            lawful = is_decided and is_its_round and (job.release_at or 0) > now
        case "approve" | "redo" | "reject":
            is_same_verdict = job.decision is not None and job.decision.verdict == step.verb
            lawful = is_decided and is_same_verdict and (job.release_at or 0) <= now
        case "expire":
            lawful = not is_decided and (job.review_deadline or now + 1) <= now
        case "wake":
            lawful = job.parked_at is not None
        case "cancel":
            lawful = True
        case _:
            raise AssertionError(f"no law says when a job may be moved by {step.verb}")
    return lawful


def check_change(before: StoreContent, after: StoreContent) -> None:
    """Check what must hold between two consecutive contents of the store."""
    for job_id, job in before.jobs.items():
        job_after = after.jobs.get(job_id)
        if job.status in TERMINAL:
            assert job_after is None or job_after == job, "terminal is terminal"
        elif job.status == "human":
            assert job_after is not None, "what has not ended is not forgotten"
            assert job_after.status != "success" or job_after.decision is not None, (
                "nothing held leaves without a verdict"
            )
    for name in ("events", "votes", "decisions"):
        rows_before, rows_after = getattr(before, name), getattr(after, name)
        changed = {key for key in rows_before if rows_before[key] != rows_after.get(key)}
        assert not {key for key in changed if key[0] in after.jobs}, "what was written down stays as it is"


def check(content: StoreContent) -> None:
    """Check what must hold at every moment."""
    for job in content.jobs.values():
        assert 0 <= job.attempt <= job.max_attempts, "attempts are bounded"
        assert job.status == "bot" or job.lease is None, "only the machine's side is leased"
        assert (job.lease is None) == (job.lease_until is None)
        assert job.parked_at is None or (job.status, job.lease) == ("bot", None), "what is parked waits for its steps"
        run = content.jobs.get(job.parent_id or "")
        assert run is None or run.status != "fail" or job.is_terminal, "nothing goes on below what has failed"
        assert job.status == "human" or job.release_at is None
        if job.status == "human" and job.release_at is not None:
            assert content.decisions[job.id, job.round][0] == job.decision, "a verdict is one of its round"
    positions = [(job.parent_id, job.parent_round, job.node) for job in content.jobs.values() if job.parent_id]
    assert len(positions) == len({*positions}), "a step is made once"
    for (job_id, number), (decision, _) in content.decisions.items():
        assert (job_id, number, decision.reviewer) in content.votes, "a decision is the vote of its reviewer"
    deliveries = [(delivery.job_id, delivery.kind) for delivery in content.deliveries.values()]
    assert sorted(deliveries) == sorted(expected_deliveries(content)), (
        "ends are told once of each kind, cancels are not"
    )


def expected_deliveries(content: StoreContent) -> list[tuple[str, str]]:
    """Return the job id and kind of each delivery that must exist."""
    ended = [job for job in content.jobs.values() if job.status in TERMINAL]
    notified = [job for job in ended if content.events[job.id, job.seq][0] != "cancel"]
    return [(job.id, target.kind) for job in notified for target in job.deliver]


def check_replay(jobs: dict[str, Job], events: Sequence[Event]) -> None:
    """Check that the events of each job give its row."""
    of_job: dict[str, list[Event]] = {job_id: [] for job_id in jobs}
    for event in events:
        of_job[event.job_id].append(event)
    for job_id, job in jobs.items():
        assert sorted(event.seq for event in of_job[job_id]) == [*range(1, job.seq + 1)]
        replayed, row = replay(of_job[job_id]), msgspec.json.decode(msgspec.json.encode(job))
        row["metadata"] = msgspec.json.decode(job.metadata)
        names = row.keys() - ROW_ONLY - ({"lease_until"} if job.lease else set())  # a heartbeat writes no event
        assert {name: replayed.get(name) for name in names} == {name: row[name] for name in names}
        if job.round > 0:
            assert replayed.get("response") == (None if job.response is None else msgspec.json.decode(job.response))


def check_receipts(jobs: dict[str, Job], events: Sequence[Event], signed: Sequence[VerdictReceipt]) -> None:
    """Check that each decision that took effect has exactly one receipt."""
    effects = Counter(
        event.job_id
        for event in events
        if event.verb in {"approve", "redo", "reject"} or (event.verb == "expire" and event.data["status"] != "human")
    )
    of_jobs = [receipt for receipt in signed if receipt.job_id in jobs]
    assert Counter(receipt.job_id for receipt in of_jobs) == effects, "a decision that took effect has one receipt"
    rounds = [(receipt.job_id, receipt.round) for receipt in of_jobs]
    assert len(rounds) == len({*rounds}), "a round has one receipt"
