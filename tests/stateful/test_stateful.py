"""Stateful tests: a store and a plain model of it behave the same for any order of calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy.exc import SQLAlchemyError

from signoff.core.job import Decision, Edit, JobError, Verdict
from signoff.core.reviews.policy import JobPolicy
from signoff.core.transitions import TRANSITIONS, Guard, Transition
from signoff.stores import claims, deliveries, jobs, transitions
from stateful.machine import TICK_SECONDS, Machine
from stateful.model import GUARDS
from stateful.place import ControlledDatabase

Break = Callable[[pytest.MonkeyPatch], None]
STEPS = 50
pytestmark = [pytest.mark.slow, pytest.mark.law]
RUNS = {"sqlite": 12, "postgres": 4}
LONG_RUNS = 600
SEARCHES = 400

# The runs are the same each time, and a failed one is printed as it is: to shrink and explain it takes many minutes.
BASE_SETTINGS = settings(
    phases=[Phase.generate],
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(params=[*RUNS])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ControlledDatabase]:
    """Yield a new store with a controlled clock."""
    url = (
        f"sqlite:///{tmp_path}/store.db" if request.param == "sqlite" else request.getfixturevalue("empty_postgres_url")
    )
    with open_database(url) as place:
        yield place


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlledDatabase]:
    """Yield a store that the faults use one after the other."""
    with open_database(f"sqlite:///{tmp_path_factory.mktemp('broken')}/store.db") as place:
        yield place


def open_database(url: str) -> contextlib.closing[ControlledDatabase]:
    return contextlib.closing(ControlledDatabase(url))


def run_machine(place: ControlledDatabase, more: settings) -> None:
    run_state_machine_as_test(lambda: Machine(place), settings=more)


def test_a_store_behaves_like_its_model(place: ControlledDatabase, request: pytest.FixtureRequest) -> None:
    database = request.node.callspec.params["place"]
    Machine.performed.clear()
    Machine.refused.clear()

    run_machine(place, settings(BASE_SETTINGS, max_examples=RUNS[database]))

    if database == "postgres":  # fewer runs, with the same first steps as on SQLite
        return
    # few runs park a job that is then woken, leave a lease until it lapses, pass a deadline, or decide at once
    wake_a_parked_run(place)
    expire_an_answer(place)
    lapse_a_lease(place)
    for verdict in get_args(Verdict):
        decide_on_an_answer(place, verdict)
    vote_on_an_answer(place)
    undo_a_verdict_too_late(place)
    assert verbs_to_do() == set()


def wake_a_parked_run(place: ControlledDatabase) -> None:
    """Take the steps of the machine that lead to `wake`, and compare the store with its model after them."""
    machine = Machine(place)
    fields = {"user_id": 1, "priority": 5, "max_attempts": 1, "metadata": b"null", "policy": JobPolicy(), "deliver": ()}
    machine.submit(fields | {"pipeline_id": 1}, key=None, body=b'"one"', due=0, is_mistake=False)
    machine.claim(limit=1, lease=3)
    machine.park(index=0, missed=False)
    machine.sweep(index=0, is_mistake=True, verb="wake")
    machine.teardown()


def lapse_a_lease(place: ControlledDatabase) -> None:
    """Take the steps of the machine that lead to `lapse`, and compare the store with its model after them."""
    machine = Machine(place)
    fields = {"user_id": 1, "priority": 5, "max_attempts": 1, "metadata": b"null", "policy": JobPolicy(), "deliver": ()}
    machine.submit(fields, key=None, body=b'"one"', due=0, is_mistake=False)
    machine.claim(limit=1, lease=-1)
    machine.sweep(index=0, is_mistake=True, verb="lapse")
    machine.teardown()


def with_a_held_answer(place: ControlledDatabase, policy: JobPolicy | None = None) -> Machine:
    """Return a machine that has taken the steps to a held answer."""
    machine, policy = Machine(place), policy or JobPolicy()
    fields = {"user_id": 1, "priority": 5, "max_attempts": 1, "metadata": b"null", "policy": policy, "deliver": ()}
    machine.submit(fields, key=None, body=b'"one"', due=0, is_mistake=False)
    machine.claim(limit=1, lease=3)
    machine.work("hold", index=0, count=1, error=JobError(code="x", message="No."))
    return machine


def expire_an_answer(place: ControlledDatabase) -> None:
    """Take the steps of the machine that lead to `expire`, and compare the store with its model after them."""
    policy = JobPolicy(review="always", deadline_seconds=TICK_SECONDS, on_deadline="reject")
    machine = with_a_held_answer(place, policy)
    machine.time_passes(index=0, extra_ticks=1)
    machine.sweep(index=0, is_mistake=True, verb="expire")
    machine.teardown()


def vote_on_an_answer(place: ControlledDatabase) -> None:
    """Take the steps of the machine for the rarer verbs of reviewers, and compare the store with its model."""
    machine = with_a_held_answer(place)
    for verb in ("open", "renew", "vote", "assign", "escalate"):
        machine.review(verb, index=0, reviewer="ann", edit=Edit(), behind=0)
    machine.teardown()


def decide_on_an_answer(place: ControlledDatabase, verdict: Verdict) -> None:
    """Take the steps of the machine that lead to a verdict, and compare the store with its model after them."""
    machine = with_a_held_answer(place)
    machine.decide(index=0, decision=Decision(verdict=verdict, reviewer="ann"), undo=0, behind=0)
    machine.teardown()


def undo_a_verdict_too_late(place: ControlledDatabase) -> None:
    """Take the steps of the machine that lead to an `undo` after its time, and compare the store with its model."""
    machine = with_a_held_answer(place)
    machine.decide(index=0, decision=Decision(verdict="approve", reviewer="ann"), undo=1, behind=0)
    machine.time_passes(index=0, extra_ticks=1)
    machine.review("undo", index=0, reviewer="ann", edit=Edit(), behind=0)
    machine.teardown()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_store_behaves_like_its_model_in_long_runs(place: ControlledDatabase) -> None:
    Machine.performed.clear()
    run_machine(
        place, settings(BASE_SETTINGS, max_examples=LONG_RUNS, derandomize=False, phases=[Phase.generate, Phase.shrink])
    )
    assert verbs_to_do() == set()


def verbs_to_do() -> set[str]:
    """Return the verbs that no run has performed, except two that no machine requests: `refuse` and `present`."""
    return TRANSITIONS.keys() - (+Machine.performed).keys() - {"refuse", "present"}


def test_the_model_knows_every_guard() -> None:
    assert GUARDS.keys() == set(Guard)


# Each fault must be detected


def without(verb: str, guard: Guard) -> Break:
    """Remove a guard from a transition of the store."""
    return changed(
        verb, lambda transition: {"guards": tuple(other for other in transition.guards if other is not guard)}
    )


def changed(verb: str, change: Callable[[Transition], dict[str, Any]]) -> Break:
    """Change a row of `TRANSITIONS` for the store, but not for the model."""

    def break_store(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(
            transitions,
            "TRANSITIONS",
            TRANSITIONS | {verb: msgspec.structs.replace(TRANSITIONS[verb], **change(TRANSITIONS[verb]))},
        )

    return break_store


def misread(verb: str, guard: Guard) -> Break:
    """Remove a guard from `TRANSITIONS` for store and model, so that only the laws can detect it."""

    def break_store(patch: pytest.MonkeyPatch) -> None:
        guards = tuple(other for other in TRANSITIONS[verb].guards if other is not guard)
        patch.setitem(TRANSITIONS, verb, msgspec.structs.replace(TRANSITIONS[verb], guards=guards))

    return break_store


def guard_is(guard: Guard, condition: sa.ColumnElement[bool]) -> Break:
    """Replace the condition of a guard in the store."""
    return lambda patch: patch.setitem(transitions._GUARDS, guard, condition)


def replaced(owner: Any, name: str, replacement: Any) -> Break:
    """Replace an attribute of the store's code."""
    return lambda patch: patch.setattr(owner, name, replacement)


def loosened(owner: Any, name: str, index: int) -> Break:
    """Make one condition of a statement always true."""

    def break_store(patch: pytest.MonkeyPatch) -> None:
        statement = getattr(owner, name)._generate()
        criteria = [*statement._where_criteria]
        criteria[index] = sa.or_(criteria[index], sa.text("1 = 1"))
        statement._where_criteria = tuple(criteria)
        patch.setattr(owner, name, statement)

    return break_store


create_deliveries = transitions.create_deliveries
NOW = transitions.NOW
ROW = transitions.jobs.c
FAULTS: dict[str, Break] = {
    "a late worker succeeds": without("succeed", Guard.LEASE),
    "a late worker fails": without("fail", Guard.LEASE),
    "a late worker gives back": without("release", Guard.LEASE),
    "a late reviewer decides": without("decide", Guard.ROUND),
    "two decide": without("decide", Guard.UNDECIDED),
    "what is decided expires": without("expire", Guard.UNDECIDED),
    "a draft after the verdict": without("draft", Guard.UNDECIDED),
    "a job is claimed too early": without("claim", Guard.DUE),
    "a live lease lapses": without("lapse", Guard.LAPSED),
    "a review ends too early": without("expire", Guard.OVERDUE),
    "a verdict is undone too late": without("undo", Guard.UNRELEASED),
    "a lease lapses at its last moment": guard_is(Guard.LAPSED, ROW.lease.is_not(None) & (ROW.lease_until <= NOW)),
    "a job is due a moment late": guard_is(Guard.DUE, ROW.lease.is_(None) & (ROW.due_at < NOW)),
    "a lease stays": changed("hold", lambda _: {"clears": ()}),
    "an attempt is not counted": changed("claim", lambda _: {"adds": {}}),
    "an ended job is cancelled": changed("cancel", lambda transition: {"sources": (*transition.sources, "success")}),
    "by the table, a late worker succeeds": misread("succeed", Guard.LEASE),
    "by the table, a late reviewer decides": misread("decide", Guard.ROUND),
    "by the table, two decide": misread("decide", Guard.UNDECIDED),
    "by the table, a job is claimed too early": misread("claim", Guard.DUE),
    "by the table, a live lease lapses": misread("lapse", Guard.LAPSED),
    "by the table, a review ends too early": misread("expire", Guard.OVERDUE),
    "a run parks over what has settled": without("park", Guard.QUIET),
    "a run that is not parked is woken": without("wake", Guard.PARKED),
    "a parked run is claimed": guard_is(Guard.DUE, ROW.lease.is_(None) & (ROW.due_at <= NOW)),
    "nobody wakes a run": replaced(transitions, "_wake_run", lambda *_: None),
    "steps outlive their run": replaced(transitions, "_cancel_steps", lambda *_: None),
    "steps are forgotten before their run": loosened(jobs, "_OLD", 3),
    "nobody is told": replaced(transitions, "create_deliveries", lambda *_: None),
    "nobody is told of a call": replaced(jobs, "create_deliveries", lambda *_: None),
    "cancels are told": replaced(
        transitions, "create_deliveries", lambda tx, job, _: create_deliveries(tx, job, "fail")
    ),
    "an event leaves something out": replaced(transitions, "changed_columns", lambda job, _: {"status": job.status}),
    "a vote is not kept": replaced(transitions, "record_vote", lambda *_: None),
    "a decision is not kept": replaced(transitions, "record_decision", lambda *_: None),
    "a key is never free": replaced(jobs, "_is_key_free", lambda *_: False),
    "a key is always free": replaced(jobs, "_is_key_free", lambda *_: True),
    "a heartbeat renews any lease": loosened(jobs, "_RENEW", 1),
    "young jobs are forgotten": loosened(jobs, "_OLD", 1),
    "untold jobs are forgotten": loosened(jobs, "_OLD", 2),
    "a late sender settles": loosened(deliveries, "_SETTLE_WITH_RESULT", 1),
    "what is being sent is sent again": loosened(deliveries, "_RESEND", 1),
}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Clear the caches of SQL statements before and after the test."""
    cached = (transitions._statement, claims._claim_statement, claims._users_statement, transitions.select_eligible)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


# Faults that hundreds of runs may miss, with the steps that lead to them.
SCRIPTED = {"a verdict is undone too late": undo_a_verdict_too_late}
FOUND_QUICKLY = {
    *SCRIPTED,
    "a late reviewer decides",
    "by the table, a job is claimed too early",
    "by the table, a late worker succeeds",
    "by the table, a live lease lapses",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_of_the_present_code(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    with monkeypatch.context() as patch:
        FAULTS[fault](patch)


@pytest.mark.timeout(7200)  # a rare fault takes hundreds of runs
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=() if name in FOUND_QUICKLY else pytest.mark.long) for name in FAULTS]
)
def test_the_machine_finds_a_broken_store(
    broken: ControlledDatabase, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with monkeypatch.context() as patch, pytest.raises((AssertionError, SQLAlchemyError)):
        FAULTS[fault](patch)
        if fault in SCRIPTED:
            SCRIPTED[fault](broken)
        else:
            run_machine(broken, settings(BASE_SETTINGS, max_examples=SEARCHES))
