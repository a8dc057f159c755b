"""Stateful tests: a store and a plain model of it behave the same for any order of calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy.exc import SQLAlchemyError

from signoff.core.job import TRANSITIONS, Guard, Transition
from signoff.stores import deliveries, jobs, transitions
from stateful.machine import Machine
from stateful.model import GUARDS
from stateful.place import Place

Break = Callable[[pytest.MonkeyPatch], None]
STEPS = 50
pytestmark = pytest.mark.slow
RUNS = {"sqlite": 36, "postgres": 12}
LONG_RUNS = 600
SEARCHES = 400

plain = settings(
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(params=[*RUNS])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Yield a new store with a controlled clock."""
    url = (
        f"sqlite:///{tmp_path}/store.db" if request.param == "sqlite" else request.getfixturevalue("empty_postgres_url")
    )
    with opened(url) as place:
        yield place


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Yield a store that the faults use one after the other."""
    with opened(f"sqlite:///{tmp_path_factory.mktemp('broken')}/store.db") as place:
        yield place


def opened(url: str) -> contextlib.closing[Place]:
    return contextlib.closing(Place(url))


def go(place: Place, more: settings) -> None:
    run_state_machine_as_test(lambda: Machine(place), settings=more)


@pytest.mark.timeout(600)  # hypothesis needs time to shrink a failure
def test_a_store_does_what_its_model_does(place: Place, request: pytest.FixtureRequest) -> None:
    database = request.node.callspec.params["place"]
    Machine.made.clear()
    Machine.refused.clear()

    go(place, settings(plain, max_examples=RUNS[database]))

    if database == "postgres":  # fewer runs, with the same first steps as on SQLite
        return
    # Only streams use `refuse`; their own tests cover it.
    assert TRANSITIONS.keys() - (+Machine.made).keys() == {"refuse"}, "every other verb was done"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_store_does_what_its_model_does_for_long(place: Place) -> None:
    go(place, settings(plain, max_examples=LONG_RUNS, derandomize=False, print_blob=True))


def test_the_model_knows_every_guard() -> None:
    assert GUARDS.keys() == set(Guard)


# Each fault must be detected


def without(verb: str, guard: Guard) -> Break:
    """Remove a guard from a transition of the store."""
    return changed(verb, lambda move: {"guards": tuple(other for other in move.guards if other is not guard)})


def changed(verb: str, how: Callable[[Transition], dict[str, Any]]) -> Break:
    """Change a row of `TRANSITIONS` for the store, but not for the model."""

    def to_break(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(
            transitions,
            "TRANSITIONS",
            TRANSITIONS | {verb: msgspec.structs.replace(TRANSITIONS[verb], **how(TRANSITIONS[verb]))},
        )

    return to_break


def misread(verb: str, guard: Guard) -> Break:
    """Remove a guard from `TRANSITIONS` for store and model, so that only the laws can detect it."""

    def to_break(patch: pytest.MonkeyPatch) -> None:
        guards = tuple(other for other in TRANSITIONS[verb].guards if other is not guard)
        patch.setitem(TRANSITIONS, verb, msgspec.structs.replace(TRANSITIONS[verb], guards=guards))

    return to_break


def guard_is(guard: Guard, condition: sa.ColumnElement[bool]) -> Break:
    """Replace the condition of a guard in the store."""
    return lambda patch: patch.setitem(transitions._GUARDS, guard, condition)


def instead(where: Any, name: str, what: Any) -> Break:
    """Replace an attribute of the store's code."""
    return lambda patch: patch.setattr(where, name, what)


def loosened(where: Any, name: str, number: int) -> Break:
    """Make one condition of a statement always true."""

    def to_break(patch: pytest.MonkeyPatch) -> None:
        statement = getattr(where, name)._generate()
        criteria = [*statement._where_criteria]
        criteria[number] = sa.or_(criteria[number], sa.text("1 = 1"))
        statement._where_criteria = tuple(criteria)
        patch.setattr(where, name, statement)

    return to_break


create_deliveries = transitions.create_deliveries
NOW = transitions._NOW
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
    "an ended job is cancelled": changed("cancel", lambda move: {"sources": (*move.sources, "success")}),
    "by the table, a late worker succeeds": misread("succeed", Guard.LEASE),
    "by the table, a late reviewer decides": misread("decide", Guard.ROUND),
    "by the table, two decide": misread("decide", Guard.UNDECIDED),
    "by the table, a job is claimed too early": misread("claim", Guard.DUE),
    "by the table, a live lease lapses": misread("lapse", Guard.LAPSED),
    "by the table, a review ends too early": misread("expire", Guard.OVERDUE),
    "a run parks over what has settled": without("park", Guard.QUIET),
    "a run that is not parked is woken": without("wake", Guard.PARKED),
    "a parked run is claimed": guard_is(Guard.DUE, ROW.lease.is_(None) & (ROW.due_at <= NOW)),
    "nobody wakes a run": instead(transitions, "_wake_run", lambda *_: None),
    "steps outlive their run": instead(transitions, "_cancel_steps", lambda *_: None),
    "steps are forgotten before their run": loosened(jobs, "_OLD", 3),
    "nobody is told": instead(transitions, "create_deliveries", lambda *_: None),
    "nobody is told of a call": instead(jobs, "create_deliveries", lambda *_: None),
    "cancels are told": instead(
        transitions, "create_deliveries", lambda tx, job, _: create_deliveries(tx, job, "fail")
    ),
    "an event leaves something out": instead(transitions, "_changed_columns", lambda job, _: {"status": job.status}),
    "a vote is not kept": instead(transitions, "_record_decision", lambda *_: None),
    "a key is never free": instead(jobs, "_is_key_free", lambda *_: False),
    "a key is always free": instead(jobs, "_is_key_free", lambda *_: True),
    "a heartbeat renews any lease": loosened(jobs, "_RENEW", 1),
    "young jobs are forgotten": loosened(jobs, "_OLD", 1),
    "untold jobs are forgotten": loosened(jobs, "_OLD", 2),
    "a late sender settles": loosened(deliveries, "_SETTLE_WITH_RESULT", 1),
    "what is being sent is sent again": loosened(deliveries, "_RESEND", 1),
}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Clear the caches of SQL statements before and after the test."""
    built = (transitions._statement, transitions._claim_statement, transitions.select_eligible)
    for each in built:
        each.cache_clear()
    yield
    for each in built:
        each.cache_clear()


FOUND_AT_ONCE = {
    "a late reviewer decides",
    "by the table, a job is claimed too early",
    "by the table, a late reviewer decides",
    "by the table, a late worker succeeds",
    "by the table, a live lease lapses",
}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=() if name in FOUND_AT_ONCE else pytest.mark.long) for name in FAULTS]
)
def test_what_is_broken_is_found(broken: Place, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    with monkeypatch.context() as patch, pytest.raises((AssertionError, SQLAlchemyError)):
        FAULTS[fault](patch)
        go(broken, settings(plain, max_examples=SEARCHES, phases=[Phase.generate]))
