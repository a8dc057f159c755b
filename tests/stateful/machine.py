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
from signoff.core.job import STATUSES, Decision, Draft, Edit, Job, JobError, Verdict
from signoff.core.reviews.policy import JobPolicy, OnDeadline
from signoff.core.turn import Turn
from signoff.errors import KeyReused, SignoffError, Stale
from signoff.store import TransitionRequest
from signoff.stores.calls import is_plain
from signoff.work.reviews.desk import verdict_transition
from signoff.work.submit import check_same
from stateful import laws
from stateful.model import Model, request_for
from stateful.place import START, TICK, TICK_SECONDS, ControlledDatabase
from support.stores import ANSWER, a_job

T = TypeVar("T")
RETRYABLE = JobError(code="model_unreachable", message="Nobody there.", status=502)
FINAL = JobError(code="model_error", message="No.", status=400)
CANCELLED = JobError(code="cancelled", message="Enough.", status=409)
Method = Callable[..., None]
ACTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {}
CONDITIONS: dict[str, Callable[[Any], object]] = {}
MAX_LISTED = 8
MAX_UNFINISHED = 5
STAGES = ("waiting", "leased", "retried", "held", "looked at", "decided", "undone")
HOSTS = ("one.example", "two.example")

rounds = st.sampled_from([0, 0, 0, 1])
mistakes = st.sampled_from([False, False, False, True])
keys = st.sampled_from([None, "k", "l"])
indexes = st.integers(0, 30)
ticks = st.integers(0, 3)
people = st.sampled_from(["ann", "bob"])
errors = st.sampled_from([RETRYABLE, FINAL])
HOOKS = [DeliveryTarget(address=f"https://{host}/", host=host) for host in HOSTS]
COPY = DeliveryTarget(kind="redis", address="signoff:1", host="redis")
job_fields = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from([1, 2]),
        "priority": st.sampled_from([1, 5, 9]),
        "max_attempts": st.sampled_from([1, 2, 3]),
        "pipeline_id": st.sampled_from([None, 1]),
        "metadata": st.sampled_from([b"null", b'{"a":[1]}']),
        "policy": st.sampled_from([JobPolicy(on_deadline=way) for way in get_args(OnDeadline)]),
        "deliver": st.sampled_from([(), *((hook,) for hook in HOOKS), (HOOKS[0], COPY), (COPY,)]),
    }
)
edits = st.sampled_from([Edit(), Edit(payload='{"a":1}'), Edit(response='"edited"')])
reviewer_decisions = st.builds(
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


def action(**strategies: st.SearchStrategy[Any]) -> Callable[[Method], Method]:
    """Register a method as a step of the machine, with the strategies of its arguments."""

    def register(method: Method) -> Method:
        ACTIONS[method.__name__] = strategies
        return method

    return register


def only_if(condition: Callable[[Machine], object]) -> Callable[[Method], Method]:
    """Restrict a step to states in which `condition` holds."""

    def register(method: Method) -> Method:
        CONDITIONS[method.__name__] = condition
        return method

    return register


def possible(*verbs: str, at_least: int = 1) -> Callable[[Method], Method]:
    """Restrict a step to states with jobs for these transitions; one time in four, it takes another job anyway."""
    return only_if(lambda self: sum(len(self.allowed_jobs(verb, reviewer="ann")) for verb in verbs) >= at_least)


class Machine(RuleBasedStateMachine):
    """A store and its model. `performed` and `refused` count transitions by verb over all runs in this process."""

    performed: ClassVar = Counter[str]()
    refused: ClassVar = Counter[str]()

    def __init__(self, database: ControlledDatabase) -> None:
        super().__init__()
        database.reset()
        self.database, self.jobs, self.deliveries = database, database.store.jobs, database.store.deliveries
        self.model = Model(START)
        self.before = msgspec.structs.replace(self.model.content)
        self.number = 0
        self.leases: list[tuple[str, str]] = []
        """Every lease that was ever given, as job id and token."""
        self.delivery_leases: list[tuple[str, str]] = []
        self.listed_transitions: list[tuple[str, Job]] = []
        """The transitions that a sweeper has listed but not requested yet, as verb and job."""

    @rule(random_float=st.integers(0, 2**32), data=st.data())
    def step(self, random_float: int, data: st.DataObject) -> None:
        """Take one of the steps. With one rule for each step, hypothesis would leave out most steps in each run."""
        possible_actions = [name for name in ACTIONS if CONDITIONS.get(name, bool)(self)]
        name = Random(random_float).choice(possible_actions)
        getattr(self, name)(**data.draw(st.fixed_dictionaries(ACTIONS[name]), label=name))

    # Submitting

    @initialize(stages=st.lists(st.tuples(job_fields, st.sampled_from(STAGES)), min_size=2, max_size=5))
    def insert_jobs_in_several_stages(self, stages: list[tuple[dict[str, Any], str]]) -> None:
        """Create jobs in several stages, so that a short run reaches later states."""
        for fields, stage in stages:
            self.submit(fields, key=None, body=b'"one"', due=0, is_mistake=False)
            if stage != "waiting":
                self.claim(limit=1, lease=1)
            if stage == "retried":
                self.work("release", index=1, count=0, error=FINAL)
                self.claim(limit=1, lease=1)
                self.work("retry", index=1, count=1, error=FINAL)
            if stage in {"held", "looked at", "decided", "undone"}:
                self.work("hold", index=1, count=1, error=FINAL)
            if stage == "looked at":
                for verb in ("open", "draft", "leave"):
                    self.review(verb, index=1, reviewer="ann", edit=Edit(), behind=0)
            if stage in {"decided", "undone"}:
                self.decide(index=1, decision=Decision(verdict="redo", reviewer="ann"), undo=1, behind=0)
            if stage == "undone":
                self.review("undo", index=1, reviewer="ann", edit=Edit(), behind=0)

    @only_if(lambda self: not self.is_busy())
    @action(fields=job_fields, key=keys, body=st.sampled_from([b'"one"', b'"two"']), due=ticks, is_mistake=mistakes)
    def submit(self, fields: dict[str, Any], key: str | None, body: bytes, due: int, is_mistake: bool) -> None:
        """Submit a job; with `is_mistake`, under an id in use, which must fail unless a job has its key."""
        job = self.a_job(**fields, idempotency_key=key, fingerprint=fingerprint(body), body=body)
        if is_mistake and (existing := self.any_job(due)).id not in self.model.logged:
            job = msgspec.structs.replace(job, id=existing.id)
        if job.id in self.model.content.jobs and self.model.job_of_key(job) is None:
            error = outcome_of(lambda: self.database.run(self.jobs.insert(job, actor="eve")))
            assert isinstance(error, IntegrityError)
            return
        stored = self.insert(job, due_seconds=due * TICK_SECONDS)
        if stored.fingerprint != job.fingerprint:
            assert isinstance(outcome_of(lambda: check_same(stored, job)), KeyReused)

    @only_if(lambda self: not self.is_busy())
    @action(
        fields=job_fields, key=keys, lease=ticks, end=st.sampled_from([None, None, "succeed", "fail", "cancel", "hit"])
    )
    def call(self, fields: dict[str, Any], key: str | None, lease: int, end: str | None) -> None:
        """Insert a job of a waiting caller: with a lease from the start, or only after its end."""
        job = self.a_job(**fields, lane="now", attempt=1)
        if end == "hit" and key is not None:
            hit_job = msgspec.structs.replace(job, idempotency_key=key, attempt=0, status="success", response=ANSWER)
            self.insert(hit_job, verb="hit")
            return
        if end is not None:
            self.insert_ended(job, end)
            return
        job = msgspec.structs.replace(job, idempotency_key=key, lease=self.token())
        if self.insert(job, lease_seconds=lease * TICK_SECONDS).id == job.id:
            self.leases.append((job.id, job.lease or ""))

    # Workers

    @only_if(lambda self: any(job.status == "bot" for job in self.model.content.jobs.values()))
    @action(limit=st.integers(1, 3), lease=ticks, after_user=st.sampled_from([-2, 1, 2]))
    def claim(self, limit: int, lease: int, after_user: int = -2) -> None:
        turn = Turn(after_user=after_user)
        arguments: dict[str, Any] = {"lease": self.token(), "limit": limit, "turn": turn}
        arguments["lease_seconds"] = lease * TICK_SECONDS
        jobs_before = dict(self.model.content.jobs)
        claimed = self.database.run(self.jobs.claim(actor="worker", **arguments))
        step = TransitionRequest(verb="claim", actor="worker")
        assert all(laws.is_lawful(jobs_before[job.id], step, self.model.now) for job in claimed)
        assert claimed == self.model.claim(actor="worker", **arguments)
        self.leases += [(job.id, job.lease or "") for job in claimed]
        self.performed["claim"] += len(claimed)

    @only_if(lambda self: self.leases)
    @action(indexes_of_leases=st.lists(indexes, min_size=1, max_size=4), lease=ticks)
    def heartbeat(self, indexes_of_leases: list[int], lease: int) -> None:
        """Renew leases, both valid ones and ones that were lost long ago."""
        leases = dict(self.leases[index % len(self.leases)] for index in indexes_of_leases) | {"nobody": "none"}
        renewed = self.database.run(self.jobs.renew(leases, lease * TICK_SECONDS))
        assert renewed == self.model.renew(leases, lease * TICK_SECONDS)

    @possible("succeed")
    @action(
        verb=st.sampled_from(["succeed", "hold", "fail", "retry", "release"]), index=indexes, count=ticks, error=errors
    )
    def work(self, verb: str, index: int, count: int, error: JobError) -> None:
        """Settle, retry or release a leased job; without attempts left, a retry becomes a failure."""
        job = self.job(verb, index)
        if verb == "retry" and job.attempt >= job.max_attempts:
            verb = "fail"
        answer = {"response": ANSWER if count else b'"short"', "error": None}
        details: dict[str, dict[str, Any]] = {
            "succeed": {"changes": answer},
            "hold": {"changes": answer, "after_seconds": {"review_deadline": count * TICK_SECONDS} if count else {}},
            "fail": {"changes": {"error": error}},
            "retry": {"changes": {"error": RETRYABLE}, "after_seconds": {"due_at": count * TICK_SECONDS}},
            "release": {},
        }
        self.request_transition(job, request_for(verb, job, **details[verb]))

    @only_if(lambda self: not self.is_busy() and self.runs())
    @action(index=indexes, node=st.sampled_from(["0.0", "0.1"]), lease=ticks, is_mistake=mistakes)
    def add_step(self, index: int, node: str, lease: int, is_mistake: bool) -> None:
        """Add a step to a run, perhaps for the second time; with `is_mistake`, with a lease that was lost."""
        run = self.runs()[index % len(self.runs())]
        position = {"parent_id": run.id, "parent_round": run.round, "node": node}
        step = self.a_job(**position, attempt=1, max_attempts=2, lease=self.token(), pipeline_id=index % 2 or None)
        arguments: dict[str, Any] = {
            "run_lease": "lost" if is_mistake else run.lease,
            "lease_seconds": lease * TICK_SECONDS,
        }
        store_result = outcome_of(
            lambda: self.database.run(self.database.store.runs.add_step(step, actor="worker", **arguments))
        )
        assert comparable(store_result) == comparable(
            outcome_of(lambda: self.model.add_step(step, actor="worker", **arguments))
        )
        if isinstance(store_result, Job):
            self.leases.append((store_result.id, store_result.lease or ""))

    @only_if(lambda self: self.runs())
    @action(index=indexes, missed=mistakes)
    def park(self, index: int, missed: bool) -> None:
        """Park a run; with `missed`, a step has settled that the run has not seen."""
        run = self.runs()[index % len(self.runs())]
        settled = len([step for step in self.model.steps(run) if step.is_terminal]) - missed
        self.request_transition(run, request_for("park", run, settled_steps=settled, after_seconds={"parked_at": 0}))

    @only_if(lambda self: self.leases)
    @action(index=indexes, verb=st.sampled_from(["succeed", "hold", "fail", "release"]), is_mistake=mistakes)
    def settle_with_old_lease(self, index: int, verb: str, is_mistake: bool) -> None:
        """Settle or release with an old lease of this job or of another."""
        job_id, lease = self.leases[index % len(self.leases)]
        job = self.any_job(index) if is_mistake else msgspec.structs.replace(self.any_job(0), id=job_id)
        self.request_transition(
            job, TransitionRequest(verb=verb, actor="zombie", lease=lease, changes={"response": b'"late"'})
        )

    @possible("cancel", at_least=3)
    @action(index=indexes)
    def cancel(self, index: int) -> None:
        job = self.job("cancel", index)
        self.request_transition(job, request_for("cancel", job, changes={"error": CANCELLED}))

    # Reviewers

    @possible("leave", "undo")
    @action(
        verb=st.sampled_from(["open", "renew", "leave", "draft", "assign", "escalate", "vote", "undo"]),
        index=indexes,
        reviewer=people,
        edit=edits,
        behind=rounds,
    )
    def review(self, verb: str, index: int, reviewer: str, edit: Edit, behind: int) -> None:
        """Take a step of a reviewer without a decision, perhaps for an earlier round or on an earlier state."""
        job = self.job(verb, index, reviewer=reviewer)
        if verb == "vote" and (job.id, job.round, reviewer) in self.model.content.votes:
            return  # no caller of the store lets somebody vote twice
        details: dict[str, dict[str, Any]] = {
            "open": {"changes": {"review_lease": reviewer}, "after_seconds": {"review_lease_until": TICK_SECONDS}},
            "renew": {"after_seconds": {"review_lease_until": 2 * TICK_SECONDS}},
            "leave": {},
            "assign": {"changes": {"assignee": reviewer}},
            "escalate": {"changes": {"review_queue": "chief"}, "after_seconds": {"escalated_at": 0}},
            "vote": {"vote": Decision(verdict="approve", reviewer=reviewer), "seq": job.seq - behind},
            "draft": {"changes": {"draft": Draft(payload=edit.payload, response=edit.response, author=reviewer)}},
            "undo": {},
        }
        self.request_transition(
            job, request_for(verb, job, reviewer=reviewer, round=job.round - behind, **details[verb])
        )

    @possible("decide")
    @action(index=indexes, decision=reviewer_decisions, undo=ticks, behind=rounds)
    def decide(self, index: int, decision: Decision, undo: int, behind: int) -> None:
        """Decide on a held job; the verdict takes effect at once unless it can be undone for a while."""
        job = self.job("decide", index, reviewer=decision.reviewer)
        step = request_for(
            "decide",
            job,
            round=job.round - behind,
            reviewer=decision.reviewer,
            changes={"decision": decision},
            after_seconds={"release_at": undo * TICK_SECONDS},
            decision=decision,
        )
        verdict_steps = [] if undo else [verdict_transition(job, decision, decision.reviewer)]
        error = self.request_transition(job, step, *verdict_steps)
        if (
            job.status == "human"
            and (stored_decision := self.model.content.decisions.get((job.id, job.round)))
            and error
        ):
            assert f"{stored_decision[0].reviewer} decided: {stored_decision[0].verdict}" in error.message, (
                "the other learns who"
            )

    # Time and sweeping

    @action(index=st.integers(0, 3), extra_ticks=st.sampled_from([0, 1]))
    def time_passes(self, index: int, extra_ticks: int) -> None:
        """Advance the clock to a moment at which something is due, or a tick later, and list what a sweeper finds."""
        due_times = self.model.due_times()
        self.model.now = (due_times[index % len(due_times)] if due_times else self.model.now) + extra_ticks * TICK
        self.database.set_clock(self.model.now)
        for verb, query in self.sweeper_queries():
            listed = by_id(self.database.run(query(100)))  # in any order, and a run must be repeatable
            self.listed_transitions += [(verb, listed[job_id]) for job_id in sorted(listed)]
        self.listed_transitions = self.listed_transitions[-MAX_LISTED:]

    @only_if(lambda self: self.listed_transitions)
    @action(index=indexes, is_mistake=mistakes, verb=st.sampled_from(["lapse", "approve", "expire", "wake"]))
    def sweep(self, index: int, is_mistake: bool, verb: str) -> None:
        """Request a transition that the sweeper has listed, perhaps late, and perhaps after another sweeper did."""
        verb, job = (
            (verb, self.any_job(index))
            if is_mistake
            else self.listed_transitions[-1 - index % len(self.listed_transitions)]
        )
        decision = job.decision or Decision(verdict="approve", reviewer="nobody")
        wake = request_for("wake", job, after_seconds={"due_at": 0})
        requests = {
            "lapse": lapse(job),
            "expire": expire(job),
            "approve": verdict_transition(job, decision, "sweeper"),
            "wake": wake,
        }
        self.request_transition(job, requests[verb])

    @only_if(lambda self: self.model.old(-1))
    @action(age=ticks, limit=st.integers(1, 3))
    def purge(self, age: int, limit: int) -> None:
        """Purge old jobs. Their order is not defined, and on PostgreSQL it can differ between calls."""
        old = self.model.old(age * TICK_SECONDS)
        limit = max(limit, len(old)) if self.database.is_postgres else limit
        count = self.database.run(self.jobs.purge(age * TICK_SECONDS, limit))
        assert count == min(limit, len(old))
        remaining = self.database.run(self.jobs.statuses([*self.model.content.jobs]))
        purged = self.model.content.jobs.keys() - remaining
        assert len(purged) == count
        assert purged <= old
        self.model.delete(purged)

    # Deliveries

    @only_if(lambda self: self.model.content.deliveries)
    @action(
        kind=st.sampled_from(get_args(DeliveryKind)),
        limit=st.integers(1, 3),
        limit_per_host=st.integers(1, 2),
        busy=st.sampled_from([{}, {HOSTS[0]: 1}]),
        lease=ticks,
    )
    def send(self, kind: DeliveryKind, limit: int, limit_per_host: int, busy: dict[str, int], lease: int) -> None:
        """Claim due deliveries; among those with the same due time, the order is not defined."""
        token, seconds, due = self.token(), lease * TICK_SECONDS, self.model.due(kind)
        limits: dict[str, Any] = {
            "limit": limit,
            "limit_per_host": limit_per_host,
            "busy": busy,
            "lease_seconds": seconds,
        }
        claimed = self.database.run(self.deliveries.claim(kind, lease=token, **limits))
        assert {delivery.id for delivery in claimed} <= {delivery.id for delivery in due}
        assert_fair(claimed, due, limit, limit_per_host, busy)
        assert claimed == [self.model.claim_delivery(delivery.id, token, seconds) for delivery in claimed]
        self.delivery_leases += sorted((delivery.id, token) for delivery in claimed)

    @only_if(lambda self: self.delivery_leases)
    @action(index=indexes, outcome=outcomes)
    def settle(self, index: int, outcome: DeliveryOutcome) -> None:
        """Settle a delivery, in time or late."""
        delivery_id, lease = self.delivery_leases[-1 - index % len(self.delivery_leases)]
        settled = self.database.run(self.deliveries.settle(delivery_id, lease, outcome))
        assert settled == self.model.settle(delivery_id, lease, outcome)

    @only_if(lambda self: self.model.content.deliveries)
    @action(index=indexes)
    def redeliver(self, index: int) -> None:
        ids = [*sorted(self.model.content.deliveries), "nobody"]
        delivery_id = ids[index % len(ids)]
        store_result = outcome_of(lambda: self.database.run(self.deliveries.redeliver(delivery_id)))
        assert comparable(store_result) == comparable(outcome_of(lambda: self.model.redeliver(delivery_id)))

    # Reading

    @invariant()
    def store_and_model_agree(self) -> None:
        content, events = self.database.read_content()
        assert content == self.model.content
        laws.check(content)
        laws.check_change(self.before, content)
        laws.check_replay(content.jobs, events)
        laws.check_receipts(content.jobs, events, self.database.read_receipts())
        self.before = content
        statuses = {job.id: (job.status, job.seq) for job in content.jobs.values()}
        assert self.database.run(self.jobs.statuses([*statuses, "nobody"])) == statuses
        for verb, query in self.sweeper_queries():
            expected = self.model.stalled_runs() if verb == "wake" else self.model.allowed_jobs(verb)
            assert by_id(self.database.run(query(100))) == expected

    def teardown(self) -> None:
        """Compare all queries of the store with the model at the end of a run."""
        model, run = self.model, self.database.run
        for job in model.content.jobs.values():
            assert run(self.jobs.get(job.id)) == job
            seqs = [event.seq for event in run(self.jobs.events(job.id))]
            assert seqs == [*range(1, job.seq + 1)]
            deliveries = [delivery for delivery in model.content.deliveries.values() if delivery.job_id == job.id]
            assert run(self.deliveries.of_job(job.id)) == deliveries
        failed = [delivery for delivery in by_age(model.content.deliveries) if delivery.state == "failed"]
        assert run(self.deliveries.failed(100)) == failed[::-1]
        for user_id, status in product([None, 1], [None, *STATUSES]):
            job_filter = JobFilter(user_id=user_id, status=status, after_id="job-0003", newest_first=user_id == 1)
            job_filter = msgspec.structs.replace(job_filter, with_steps=status is None)
            page = msgspec.structs.replace(job_filter, offset=1, limit=2, after_id=None)
            assert run(self.jobs.list(job_filter)) == model.list(job_filter)
            assert run(self.jobs.list(page)) == model.list(page)
            assert run(self.jobs.count(job_filter, at_most=10_000)) == len(model.list(job_filter))

    # Helpers of the steps

    def request_transition(self, job: Job, *steps: TransitionRequest) -> SignoffError | None:
        """Request transitions of the store and the model; compare the results, and return the store's error, if any."""
        before = self.model.content.jobs.get(job.id)
        store_result = outcome_of(lambda: self.database.run(self.jobs.transition(job.id, *steps)))
        model_result = outcome_of(lambda: self.model.transition(job.id, *steps))
        if isinstance(model_result, SignoffError):
            assert comparable(store_result) == comparable(model_result)
            self.refused[steps[0].verb] += isinstance(model_result, Stale)
            return store_result if isinstance(store_result, SignoffError) else None
        assert store_result == model_result[-1]
        for state, step in zip([before, *model_result], steps, strict=False):
            assert state is not None
            assert laws.is_lawful(state, step, self.model.now), step.verb
            self.performed[step.verb] += 1
        return None

    def sweeper_queries(self) -> list[tuple[str, Callable[[int], Coroutine[Any, Any, list[Job]]]]]:
        runs = self.database.store.runs
        queries = [("lapse", self.jobs.lapsed), ("approve", self.jobs.due_for_release), ("expire", self.jobs.overdue)]
        return [*queries, ("wake", runs.stalled)]

    def insert(self, job: Job, **options: Any) -> Job:
        stored = self.database.run(self.jobs.insert(job, actor="ann", **options))
        assert stored == self.model.insert(job, actor="ann", **options)
        self.performed[options.get("verb", "submit")] += stored.id == job.id
        return stored

    def insert_ended(self, job: Job, verb: str) -> None:
        outcome = (
            {"status": "success", "response": ANSWER}
            if verb in {"succeed", "hit"}
            else {"status": "fail", "error": FINAL}
        )
        ended_job, verbs = (
            msgspec.structs.replace(job, **outcome),
            ["hit"] if verb == "hit" else ["submit", "claim", verb],
        )

        expected = self.model.insert_ended(ended_job, actor="ann", verbs=verbs)
        self.performed["hit"] += verb == "hit"
        if is_plain(ended_job):

            async def log() -> int:
                return await (await self.jobs.log_call(ended_job, actor="ann", verbs=verbs))

            self.model.logged.add(ended_job.id)
            assert self.database.run(log()) == expected.created_at
        else:
            assert self.database.run(self.jobs.insert_ended(ended_job, actor="ann", verbs=verbs)) == expected

    def job(self, verb: str, index: int, **fields: Any) -> Job:
        """Return a job: three times in four one for which the transition is allowed, if there is any."""
        allowed = self.allowed_jobs(verb, **fields)
        return allowed[index % len(allowed)] if allowed and index % 4 else self.any_job(index)

    def runs(self) -> Sequence[Job]:
        """Return the runs that have a lease."""
        return [
            job for job in self.model.content.jobs.values() if job.pipeline_id and job.lease and job.status == "bot"
        ]

    def is_busy(self) -> bool:
        """Return True if there are so many unfinished jobs that no more should be added."""
        return len(self.model.allowed_jobs("cancel")) > MAX_UNFINISHED

    def allowed_jobs(self, verb: str, **fields: Any) -> Sequence[Job]:
        return [
            job
            for job in self.model.content.jobs.values()
            if self.model.is_allowed(job, request_for(verb, job, **fields))
        ]

    def any_job(self, index: int) -> Job:
        jobs = [*self.model.content.jobs.values()] or [a_job()]
        return jobs[index % len(jobs)]

    def a_job(self, **fields: Any) -> Job:
        return a_job(**fields, id=f"job-{self.next():04d}")

    def token(self) -> str:
        return f"lease-{self.next()}"

    def next(self) -> int:
        self.number += 1
        return self.number


def lapse(job: Job) -> TransitionRequest:
    """Return the sweeper's request for a job whose lease had run out."""
    if job.lane == "now" or job.attempt >= job.max_attempts:
        return request_for("lapse", job, to="fail", changes={"error": RETRYABLE})
    return request_for("lapse", job, to="bot", after_seconds={"due_at": 0})


def expire(job: Job) -> TransitionRequest:
    """Return the sweeper's request for a job whose review deadline had passed."""
    match job.policy.on_deadline:
        case "stay":
            return request_for("expire", job, to="human")
        case "approve":
            decision = Decision(verdict="approve", reviewer="policy", reason="No reviewer decided before the deadline.")
            return request_for("expire", job, to="success", changes={"decision": decision})
        case "reject":
            return request_for("expire", job, to="fail", changes={"error": FINAL})


def assert_fair(
    claimed: list[Delivery], due: Iterable[Delivery], limit: int, limit_per_host: int, busy: dict[str, int]
) -> None:
    """Check that each delivery left out was due no earlier than those claimed instead of it."""
    count_by_host = Counter(busy) + Counter(delivery.host for delivery in claimed)
    assert len(claimed) <= limit
    assert all(count_by_host[delivery.host] <= max(limit_per_host, busy.get(delivery.host, 0)) for delivery in claimed)
    for waiting in due:
        if waiting.id not in {delivery.id for delivery in claimed}:
            competitors = (
                claimed
                if len(claimed) == limit
                else [delivery for delivery in claimed if delivery.host == waiting.host]
            )
            assert len(claimed) == limit or count_by_host[waiting.host] >= limit_per_host
            at_same_host = [delivery for delivery in claimed if delivery.host == waiting.host]
            assert all(
                delivery.due_at <= waiting.due_at
                for delivery in (at_same_host if count_by_host[waiting.host] >= limit_per_host else competitors)
            )


def by_id(jobs: Iterable[Job]) -> dict[str, Job]:
    return {job.id: job for job in jobs}


def by_age(deliveries: dict[str, Delivery]) -> list[Delivery]:
    return [deliveries[delivery_id] for delivery_id in sorted(deliveries)]


def outcome_of(call: Callable[[], T]) -> T | SignoffError | IntegrityError:
    """Return the result of `call`, or the error that it raises."""
    try:
        return call()
    except (SignoffError, IntegrityError) as error:
        return error


def comparable(outcome: object) -> object:
    """Return the type of an error, or the outcome itself."""
    return type(outcome) if isinstance(outcome, SignoffError) else outcome
