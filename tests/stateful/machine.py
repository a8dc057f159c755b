"""State machine of a store: all calls in any order, from users and processes that may be late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import product
from random import Random
from typing import Any, ClassVar, TypeVar, get_args

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy.exc import IntegrityError

from signoff.core.delivery import Delivery, DeliveryKind, DeliveryOutcome, DeliveryTarget
from signoff.core.filters import JobFilter
from signoff.core.fingerprint import fingerprint
from signoff.core.job import STATUSES, Decision, Edit, Job, JobError, Verdict
from signoff.core.policy import OnDeadline, Policy
from signoff.errors import KeyReused, SignoffError, Stale
from signoff.store import TransitionRequest
from signoff.work.reviews.desk import verdict_transition
from signoff.work.submit import check_same
from stateful import laws
from stateful.model import Model, seen
from stateful.place import BEGIN, TICK, TICK_SECONDS, Place
from support.stores import ANSWER, a_job

T = TypeVar("T")
RETRYABLE = JobError(code="model_unreachable", message="Nobody there.", status=502)
FINAL = JobError(code="model_error", message="No.", status=400)
CANCELLED = JobError(code="cancelled", message="Enough.", status=409)
Method = Callable[..., None]
ACTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {}
CONDITIONS: dict[str, Callable[[Any], object]] = {}
REMEMBERED = 8
ENOUGH = 5
STAGES = ("waiting", "leased", "retried", "held", "looked at", "decided", "undone")
HOSTS = ("one.example", "two.example")

rounds = st.sampled_from([0, 0, 0, 1])
slips = st.sampled_from([False, False, False, True])
keys = st.sampled_from([None, "k", "l"])
picks = st.integers(0, 30)
ticks = st.integers(0, 3)
people = st.sampled_from(["ann", "bob"])
errors = st.sampled_from([RETRYABLE, FINAL])
HOOKS = [DeliveryTarget(address=f"https://{host}/", host=host) for host in HOSTS]
COPY = DeliveryTarget(kind="redis", address="signoff:1", host="redis")
asks = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from([1, 2]),
        "priority": st.sampled_from([1, 5, 9]),
        "max_attempts": st.sampled_from([1, 2, 3]),
        "pipeline_id": st.sampled_from([None, 1]),
        "metadata": st.sampled_from([b"null", b'{"a":[1]}']),
        "policy": st.sampled_from([Policy(on_deadline=way) for way in get_args(OnDeadline)]),
        "deliver": st.sampled_from([(), *((hook,) for hook in HOOKS), (HOOKS[0], COPY), (COPY,)]),
    }
)
edits = st.sampled_from([Edit(), Edit(payload='{"a":1}'), Edit(response='"edited"')])
opinions = st.builds(
    Decision, verdict=st.sampled_from(get_args(Verdict)), reviewer=people, reason=st.none(), edit=edits
)
outcomes = st.builds(
    DeliveryOutcome,
    state=st.sampled_from(["due", "done", "failed"]),
    status=st.sampled_from([None, 200, 500]),
    error=st.sampled_from([None, "Oh."]),
    after_seconds=ticks.map(lambda count: count * TICK_SECONDS),
    counts=st.booleans(),
).filter(lambda outcome: outcome.counts or outcome.state == "due")


def act(**drawn: st.SearchStrategy[Any]) -> Callable[[Method], Method]:
    """Register a method as a step of the machine, with the strategies of its arguments."""

    def add(method: Method) -> Method:
        ACTS[method.__name__] = drawn
        return method

    return add


def when(condition: Callable[[Machine], object]) -> Callable[[Method], Method]:
    """Restrict a step to states in which `condition` holds."""

    def add(method: Method) -> Method:
        CONDITIONS[method.__name__] = condition
        return method

    return add


def possible(*verbs: str, at_least: int = 1) -> Callable[[Method], Method]:
    """Restrict a step to states with jobs for these transitions; one time in four, it takes another job anyway."""
    return when(lambda self: sum(len(self.right(verb, reviewer="ann")) for verb in verbs) >= at_least)


class Machine(RuleBasedStateMachine):
    """A store and its model. `performed` and `refused` count transitions by verb over all runs in this process."""

    made: ClassVar = Counter[str]()
    refused: ClassVar = Counter[str]()

    def __init__(self, place: Place) -> None:
        super().__init__()
        place.empty()
        self.place, self.jobs, self.deliveries = place, place.store.jobs, place.store.deliveries
        self.model = Model(BEGIN)
        self.before = msgspec.structs.replace(self.model.stand)
        self.number = 0
        self.leases: list[tuple[str, str]] = []
        """Every lease that was ever given, as job id and token."""
        self.sendings: list[tuple[str, str]] = []
        self.swept: list[tuple[str, Job]] = []
        """The transitions that a sweeper has listed but not requested yet, as verb and job."""

    @rule(random_float=st.integers(0, 2**32), data=st.data())
    def step(self, random_float: int, data: st.DataObject) -> None:
        """Take one of the steps. With one rule for each step, hypothesis would leave out most steps in each run."""
        able = [name for name in ACTS if CONDITIONS.get(name, bool)(self)]
        name = Random(random_float).choice(able)
        getattr(self, name)(**data.draw(st.fixed_dictionaries(ACTS[name]), label=name))

    # Submitting

    @initialize(stages=st.lists(st.tuples(asks, st.sampled_from(STAGES)), min_size=2, max_size=5))
    def jobs_that_have_come_some_way(self, stages: list[tuple[dict[str, Any], str]]) -> None:
        """Create jobs in several stages, so that a short run reaches later states."""
        for ask, stage in stages:
            self.submit(ask, key=None, body=b'"one"', due=0, slip=False)
            if stage != "waiting":
                self.claim(limit=1, lease=1)
            if stage == "retried":
                self.work("release", pick=1, count=0, error=FINAL)
                self.claim(limit=1, lease=1)
                self.work("retry", pick=1, count=1, error=FINAL)
            if stage in {"held", "looked at", "decided", "undone"}:
                self.work("hold", pick=1, count=1, error=FINAL)
            if stage == "looked at":
                for verb in ("open", "draft", "leave"):
                    self.review(verb, pick=1, who="ann", edit=Edit(), behind=0)
            if stage in {"decided", "undone"}:
                self.decide(pick=1, decision=Decision(verdict="redo", reviewer="ann"), undo=1, behind=0)
            if stage == "undone":
                self.review("undo", pick=1, who="ann", edit=Edit(), behind=0)

    @when(lambda self: not self.is_busy())
    @act(ask=asks, key=keys, body=st.sampled_from([b'"one"', b'"two"']), due=ticks, slip=slips)
    def submit(self, ask: dict[str, Any], key: str | None, body: bytes, due: int, slip: bool) -> None:
        """Submit a job; with `slip`, under an id in use, which must fail and store nothing unless its key has a job."""
        job = self.a_job(**ask, idempotency_key=key, fingerprint=fingerprint(body), body=body)
        if slip:
            job = msgspec.structs.replace(job, id=self.any_job(due).id)
        if job.id in self.model.stand.jobs and self.model.under_key(job) is None:
            refusal = outcome_of(lambda: self.place.run(self.jobs.insert(job, actor="eve")))
            assert isinstance(refusal, IntegrityError)
            return
        standing = self.insert(job, due_seconds=due * TICK_SECONDS)
        if standing.fingerprint != job.fingerprint:
            assert isinstance(outcome_of(lambda: check_same(standing, job)), KeyReused)

    @when(lambda self: not self.is_busy())
    @act(ask=asks, key=keys, lease=ticks, ended=st.sampled_from([None, None, "succeed", "fail", "cancel", "hit"]))
    def call(self, ask: dict[str, Any], key: str | None, lease: int, ended: str | None) -> None:
        """Insert a job of a waiting caller: with a lease from the start, or only after its end."""
        job = self.a_job(**ask, lane="now", attempt=1)
        if ended == "hit" and key is not None:
            hit = msgspec.structs.replace(job, idempotency_key=key, attempt=0, status="success", response=ANSWER)
            self.insert(hit, verb="hit")
            return
        if ended is not None:
            self.insert_ended(job, ended)
            return
        job = msgspec.structs.replace(job, idempotency_key=key, lease=self.token())
        if self.insert(job, lease_seconds=lease * TICK_SECONDS).id == job.id:
            self.leases.append((job.id, job.lease or ""))

    # Workers

    @when(lambda self: any(job.status == "bot" for job in self.model.stand.jobs.values()))
    @act(limit=st.integers(1, 3), lease=ticks)
    def claim(self, limit: int, lease: int) -> None:
        asked: dict[str, Any] = {"lease": self.token(), "limit": limit, "lease_seconds": lease * TICK_SECONDS}
        before = dict(self.model.stand.jobs)
        taken = self.place.run(self.jobs.claim(actor="worker", **asked))
        step = TransitionRequest(verb="claim", actor="worker")
        assert all(laws.is_lawful(before[job.id], step, self.model.now) for job in taken)
        assert taken == self.model.claim(actor="worker", **asked)
        self.leases += [(job.id, job.lease or "") for job in taken]
        self.made["claim"] += len(taken)

    @when(lambda self: self.leases)
    @act(several=st.lists(picks, min_size=1, max_size=4), lease=ticks)
    def heartbeat(self, several: list[int], lease: int) -> None:
        """Renew leases, both valid ones and ones that were lost long ago."""
        asked = dict(self.leases[pick % len(self.leases)] for pick in several) | {"nobody": "none"}
        standing = self.place.run(self.jobs.renew(asked, lease * TICK_SECONDS))
        assert standing == self.model.renew(asked, lease * TICK_SECONDS)

    @possible("succeed")
    @act(verb=st.sampled_from(["succeed", "hold", "fail", "retry", "release"]), pick=picks, count=ticks, error=errors)
    def work(self, verb: str, pick: int, count: int, error: JobError) -> None:
        """Settle, retry or release a leased job; without attempts left, a retry becomes a failure."""
        job = self.job(verb, pick)
        if verb == "retry" and job.attempt >= job.max_attempts:
            verb = "fail"
        answer = {"response": ANSWER if count else b'"short"', "error": None}
        step: dict[str, dict[str, Any]] = {
            "succeed": {"changes": answer},
            "hold": {"changes": answer, "after_seconds": {"review_deadline": count * TICK_SECONDS} if count else {}},
            "fail": {"changes": {"error": error}},
            "retry": {"changes": {"error": RETRYABLE}, "after_seconds": {"due_at": count * TICK_SECONDS}},
            "release": {},
        }
        self.move(job, seen(verb, job, **step[verb]))

    @when(lambda self: not self.is_busy() and self.runs())
    @act(pick=picks, node=st.sampled_from(["0.0", "0.1"]), lease=ticks, slip=slips)
    def ask_a_step(self, pick: int, node: str, lease: int, slip: bool) -> None:
        """Add a step to a run, perhaps for the second time; with `slip`, with a lease that was lost."""
        run = self.runs()[pick % len(self.runs())]
        place = {"parent_id": run.id, "parent_round": run.round, "node": node}
        step = self.a_job(**place, attempt=1, max_attempts=2, lease=self.token(), pipeline_id=pick % 2 or None)
        asked: dict[str, Any] = {"run_lease": "lost" if slip else run.lease, "lease_seconds": lease * TICK_SECONDS}
        there = outcome_of(lambda: self.place.run(self.place.store.runs.add_step(step, actor="worker", **asked)))
        assert said(there) == said(outcome_of(lambda: self.model.add_step(step, actor="worker", **asked)))
        if isinstance(there, Job):
            self.leases.append((there.id, there.lease or ""))

    @when(lambda self: self.runs())
    @act(pick=picks, missed=slips)
    def park(self, pick: int, missed: bool) -> None:
        """Park a run; with `missed`, a step has settled that the run has not seen."""
        run = self.runs()[pick % len(self.runs())]
        settled = len([step for step in self.model.steps(run) if step.is_terminal]) - missed
        self.move(run, seen("park", run, settled_steps=settled, after_seconds={"parked_at": 0}))

    @when(lambda self: self.leases)
    @act(pick=picks, verb=st.sampled_from(["succeed", "hold", "fail", "release"]), slip=slips)
    def zombie(self, pick: int, verb: str, slip: bool) -> None:
        """Settle or release with an old lease of this job or of another."""
        job_id, lease = self.leases[pick % len(self.leases)]
        job = self.any_job(pick) if slip else msgspec.structs.replace(self.any_job(0), id=job_id)
        self.move(job, TransitionRequest(verb=verb, actor="zombie", lease=lease, changes={"response": b'"late"'}))

    @possible("cancel", at_least=3)
    @act(pick=picks)
    def cancel(self, pick: int) -> None:
        job = self.job("cancel", pick)
        self.move(job, seen("cancel", job, changes={"error": CANCELLED}))

    # Reviewers

    @possible("leave", "undo")
    @act(verb=st.sampled_from(["open", "leave", "draft", "undo"]), pick=picks, who=people, edit=edits, behind=rounds)
    def review(self, verb: str, pick: int, who: str, edit: Edit, behind: int) -> None:
        """Open, leave, draft or undo as a reviewer, perhaps for an earlier round."""
        job = self.job(verb, pick, reviewer=who)
        step: dict[str, dict[str, Any]] = {
            "open": {"changes": {"review_lease": who}, "after_seconds": {"review_lease_until": TICK_SECONDS}},
            "leave": {},
            "draft": {"changes": {"draft": edit}},
            "undo": {},
        }
        self.move(job, seen(verb, job, reviewer=who, round=job.round - behind, **step[verb]))

    @possible("decide")
    @act(pick=picks, decision=opinions, undo=ticks, behind=rounds)
    def decide(self, pick: int, decision: Decision, undo: int, behind: int) -> None:
        """Decide on a held job; the verdict takes effect at once unless it can be undone for a while."""
        job = self.job("decide", pick, reviewer=decision.reviewer)
        step = seen(
            "decide",
            job,
            round=job.round - behind,
            reviewer=decision.reviewer,
            changes={"decision": decision},
            after_seconds={"release_at": undo * TICK_SECONDS},
            decision=decision,
        )
        at_once = [] if undo else [verdict_transition(job, decision, decision.reviewer)]
        refusal = self.move(job, step, *at_once)
        if job.status == "human" and (made := self.model.stand.decisions.get((job.id, job.round))) and refusal:
            assert f"{made[0].reviewer} decided: {made[0].verdict}" in refusal.message, "the other learns who"

    # Time and sweeping

    @act(pick=st.integers(0, 3), more=st.sampled_from([0, 1]))
    def time_passes(self, pick: int, more: int) -> None:
        """Advance the clock to a moment at which something is due, or a tick later, and list what a sweeper finds."""
        moments = self.model.moments()
        self.model.now = (moments[pick % len(moments)] if moments else self.model.now) + more * TICK
        self.place.set(self.model.now)
        for verb, look in self.swept_lists():
            self.swept += [(verb, job) for job in by_id(self.place.run(look(100))).values()]
        self.swept = self.swept[-REMEMBERED:]

    @when(lambda self: self.swept)
    @act(pick=picks, slip=slips, verb=st.sampled_from(["lapse", "approve", "expire", "wake"]))
    def sweep(self, pick: int, slip: bool, verb: str) -> None:
        """Request a transition that the sweeper has listed, perhaps late, and perhaps after another sweeper did."""
        verb, job = (verb, self.any_job(pick)) if slip else self.swept[-1 - pick % len(self.swept)]
        decision = job.decision or Decision(verdict="approve", reviewer="nobody")
        wake = seen("wake", job, after_seconds={"due_at": 0})
        ways = {
            "lapse": lapse(job),
            "expire": expire(job),
            "approve": verdict_transition(job, decision, "sweeper"),
            "wake": wake,
        }
        self.move(job, ways[verb])

    @when(lambda self: self.model.old(-1))
    @act(age=ticks, limit=st.integers(1, 3))
    def purge(self, age: int, limit: int) -> None:
        """Purge old jobs. Their order is not defined, and on PostgreSQL it can differ between calls."""
        old = self.model.old(age * TICK_SECONDS)
        limit = max(limit, len(old)) if self.place.on_server else limit
        count = self.place.run(self.jobs.purge(age * TICK_SECONDS, limit))
        assert count == min(limit, len(old))
        left = self.place.run(self.jobs.statuses([*self.model.stand.jobs]))
        gone = self.model.stand.jobs.keys() - left
        assert len(gone) == count
        assert gone <= old
        self.model.forget(gone)

    # Deliveries

    @when(lambda self: self.model.stand.deliveries)
    @act(
        kind=st.sampled_from(get_args(DeliveryKind)),
        limit=st.integers(1, 3),
        at_host=st.integers(1, 2),
        busy=st.sampled_from([{}, {HOSTS[0]: 1}]),
        lease=ticks,
    )
    def send(self, kind: DeliveryKind, limit: int, at_host: int, busy: dict[str, int], lease: int) -> None:
        """Claim due deliveries; among those with the same due time, the order is not defined."""
        token, seconds, due = self.token(), lease * TICK_SECONDS, self.model.due(kind)
        rest: dict[str, Any] = {"limit": limit, "limit_per_host": at_host, "busy": busy, "lease_seconds": seconds}
        taken = self.place.run(self.deliveries.claim(kind, lease=token, **rest))
        assert {one.id for one in taken} <= {one.id for one in due}
        assert_fair(taken, due, limit, at_host, busy)
        assert taken == [self.model.taken(one.id, token, seconds) for one in taken]
        self.sendings += sorted((one.id, token) for one in taken)

    @when(lambda self: self.sendings)
    @act(pick=picks, outcome=outcomes)
    def settle(self, pick: int, outcome: DeliveryOutcome) -> None:
        """Settle a delivery, in time or late."""
        delivery_id, lease = self.sendings[-1 - pick % len(self.sendings)]
        settled = self.place.run(self.deliveries.settle(delivery_id, lease, outcome))
        assert settled == self.model.settle(delivery_id, lease, outcome)

    @when(lambda self: self.model.stand.deliveries)
    @act(pick=picks)
    def resend(self, pick: int) -> None:
        ids = [*sorted(self.model.stand.deliveries), "nobody"]
        delivery_id = ids[pick % len(ids)]
        there = outcome_of(lambda: self.place.run(self.deliveries.redeliver(delivery_id)))
        assert said(there) == said(outcome_of(lambda: self.model.resend(delivery_id)))

    # Reading

    @invariant()
    def the_store_and_its_model_agree(self) -> None:
        stand, events = self.place.look()
        assert stand == self.model.stand
        laws.check(stand)
        laws.check_passage(self.before, stand)
        laws.check_replay(stand.jobs, events)
        self.before = stand
        statuses = {job.id: (job.status, job.seq) for job in stand.jobs.values()}
        assert self.place.run(self.jobs.statuses([*statuses, "nobody"])) == statuses
        for verb, look in self.swept_lists():
            standing = self.model.forgotten() if verb == "wake" else self.model.standing(verb)
            assert by_id(self.place.run(look(100))) == standing

    def teardown(self) -> None:
        """Compare all queries of the store with the model at the end of a run."""
        model, run = self.model, self.place.run
        for job in model.stand.jobs.values():
            assert run(self.jobs.get(job.id)) == job
            seqs = [event.seq for event in run(self.jobs.events(job.id))]
            assert seqs == [*range(1, job.seq + 1)]
            told = [one for one in model.stand.deliveries.values() if one.job_id == job.id]
            assert run(self.deliveries.of_job(job.id)) == told
        failed = [one for one in by_age(model.stand.deliveries) if one.state == "failed"]
        assert run(self.deliveries.failed(100)) == failed[::-1]
        for user_id, status in product([None, 1], [None, *STATUSES]):
            which = JobFilter(user_id=user_id, status=status, after_id="job-0003", newest_first=user_id == 1)
            which = msgspec.structs.replace(which, with_steps=status is None)
            page = msgspec.structs.replace(which, offset=1, limit=2, after_id=None)
            assert run(self.jobs.list(which)) == model.list(which)
            assert run(self.jobs.list(page)) == model.list(page)
            assert run(self.jobs.count(which)) == len(model.list(which))

    # Helpers of the steps

    def move(self, job: Job, *steps: TransitionRequest) -> SignoffError | None:
        """Request transitions of the store and the model; compare the results, and return the store's error, if any."""
        before = self.model.stand.jobs.get(job.id)
        there = outcome_of(lambda: self.place.run(self.jobs.transition(job.id, *steps)))
        here = outcome_of(lambda: self.model.move(job.id, *steps))
        if isinstance(here, SignoffError):
            assert said(there) == said(here)
            self.refused[steps[0].verb] += isinstance(here, Stale)
            return there if isinstance(there, SignoffError) else None
        assert there == here[-1]
        for state, step in zip([before, *here], steps, strict=False):
            assert state is not None
            assert laws.is_lawful(state, step, self.model.now), step.verb
            self.made[step.verb] += 1
        return None

    def swept_lists(self) -> list[tuple[str, Callable[[int], Coroutine[Any, Any, list[Job]]]]]:
        runs = self.place.store.runs
        moved = [("lapse", self.jobs.lapsed), ("approve", self.jobs.released), ("expire", self.jobs.overdue)]
        return [*moved, ("wake", runs.stalled)]

    def insert(self, job: Job, **more: Any) -> Job:
        standing = self.place.run(self.jobs.insert(job, actor="ann", **more))
        assert standing == self.model.insert(job, actor="ann", **more)
        self.made[more.get("verb", "submit")] += standing.id == job.id
        return standing

    def insert_ended(self, job: Job, verb: str) -> None:
        made = (
            {"status": "success", "response": ANSWER}
            if verb in {"succeed", "hit"}
            else {"status": "fail", "error": FINAL}
        )
        ended, verbs = msgspec.structs.replace(job, **made), ["hit"] if verb == "hit" else ["submit", "claim", verb]

        async def insert() -> Job:
            return await (await self.jobs.insert_ended(ended, actor="ann", verbs=verbs))

        assert self.place.run(insert()) == self.model.insert_ended(ended, actor="ann", verbs=verbs)

    def job(self, verb: str, pick: int, **mover: Any) -> Job:
        """Return a job: three times in four one for which the transition is allowed, if there is any."""
        right = self.right(verb, **mover)
        return right[pick % len(right)] if right and pick % 4 else self.any_job(pick)

    def runs(self) -> Sequence[Job]:
        """Return the runs that have a lease."""
        return [job for job in self.model.stand.jobs.values() if job.pipeline_id and job.lease and job.status == "bot"]

    def is_busy(self) -> bool:
        """Return True if there are so many unfinished jobs that no more should be added."""
        return len(self.model.standing("cancel")) > ENOUGH

    def right(self, verb: str, **mover: Any) -> Sequence[Job]:
        return [job for job in self.model.stand.jobs.values() if self.model.may(job, seen(verb, job, **mover))]

    def any_job(self, pick: int) -> Job:
        jobs = [*self.model.stand.jobs.values()] or [a_job()]
        return jobs[pick % len(jobs)]

    def a_job(self, **more: Any) -> Job:
        return a_job(**more, id=f"job-{self.next():04d}")

    def token(self) -> str:
        return f"lease-{self.next()}"

    def next(self) -> int:
        self.number += 1
        return self.number


def lapse(job: Job) -> TransitionRequest:
    """Return the sweeper's request for a job whose lease had run out."""
    if job.lane == "now" or job.attempt >= job.max_attempts:
        return seen("lapse", job, to="fail", changes={"error": RETRYABLE})
    return seen("lapse", job, to="bot", after_seconds={"due_at": 0})


def expire(job: Job) -> TransitionRequest:
    """Return the sweeper's request for a job whose review deadline had passed."""
    match job.policy.on_deadline:
        case "stay":
            return seen("expire", job, to="human")
        case "approve":
            decision = Decision(verdict="approve", reviewer="policy", reason="No reviewer decided before the deadline.")
            return seen("expire", job, to="success", changes={"decision": decision})
        case "reject":
            return seen("expire", job, to="fail", changes={"error": FINAL})


def assert_fair(taken: list[Delivery], due: Iterable[Delivery], limit: int, at_host: int, busy: dict[str, int]) -> None:
    """Check that each delivery left out was due no earlier than those claimed instead of it."""
    full = Counter(busy) + Counter(one.host for one in taken)
    assert len(taken) <= limit
    assert all(full[one.host] <= max(at_host, busy.get(one.host, 0)) for one in taken)
    for out in due:
        if out.id not in {one.id for one in taken}:
            before = taken if len(taken) == limit else [one for one in taken if one.host == out.host]
            assert len(taken) == limit or full[out.host] >= at_host
            at_its_host = [one for one in taken if one.host == out.host]
            assert all(one.due_at <= out.due_at for one in (at_its_host if full[out.host] >= at_host else before))


def by_id(jobs: Iterable[Job]) -> dict[str, Job]:
    return {job.id: job for job in jobs}


def by_age(deliveries: dict[str, Delivery]) -> list[Delivery]:
    return [deliveries[delivery_id] for delivery_id in sorted(deliveries)]


def outcome_of(work: Callable[[], T]) -> T | SignoffError | IntegrityError:
    """Return the result of `call`, or the error that it raises."""
    try:
        return work()
    except (SignoffError, IntegrityError) as refusal:
        return refusal


def said(outcome: object) -> object:
    """Return the type of an error, or the outcome itself."""
    return type(outcome) if isinstance(outcome, SignoffError) else outcome
