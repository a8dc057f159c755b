"""The durable core in a simulated world: it breaks no law there, and breaks one if a guard is removed.

A step is one callback that was run: of a process, of the network, or of the world outside.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

import simulate
from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.job import Job
from signoff.core.transitions import TRANSITIONS, Guard
from signoff.errors import Overloaded
from signoff.runtime.attempt import Attempt
from signoff.server import worker
from signoff.stores.transitions import create_deliveries
from signoff.work import perform, submit
from signoff.work.attempt import answer_of
from signoff.work.inference.routing import ask_model
from signoff.work.inference.settle import settle
from signoff.work.jobs import query
from signoff.work.reviews.judge import judge
from signoff.work.services import Services
from simulation import jobs
from simulation.clock import Clock
from simulation.loop import SimLoop, World
from simulation.outside import body_of
from simulation.process import Process
from simulation.run import Broken, RunResult, Simulation
from simulation.tables import Operation, Tables
from simulation.users import answer
from simulation.weather import FAULTS

SEEDS = range(6)
STEPS = 30_000
MAX_STEPS_TO_VIOLATION = 600_000
CALLER = Caller(user_id=1, token_id=1, role="user", email="ann@example.com")
pytestmark = pytest.mark.slow
SIMULATE = Path(__file__).parents[1] / "simulate.py"


@pytest.mark.parametrize("seed", SEEDS)
def test_faults_break_no_law(seed: int) -> None:
    result = Simulation(seed, steps=STEPS).run()
    assert result.steps >= STEPS


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(1000, 3000, 100))
def test_faults_break_no_law_with_many_more_seeds(first: int) -> None:
    for seed in range(first, first + 100):
        Simulation(seed).run()


def test_runs_cover_every_transition_and_every_fault() -> None:
    """Ensure that runs are eventful: a simulation in which nothing happens would find nothing."""
    rich = {"undo_seconds": 8, "deadline_seconds": 20, "retention_seconds": 90, "faults": FAULTS}
    seen = {name for seed in range(100, 104) for name in Simulation(seed, steps=STEPS, **rich).run().counts}
    # Runs, streams, and what reviewers do beside verdicts are not simulated: the state machine in `stateful/`, the walk
    # in the contract tests and the tests of processes cover them.
    desk = {"renew", "leave", "assign", "escalate", "vote"}
    assert seen >= TRANSITIONS.keys() - desk - {"submit", "hit", "park", "wake", "refuse", "present"}
    assert seen >= {f"verb {verb}" for verb in ("submit", "succeed", "fail", "cancel", "hit")}
    assert seen >= {f"fault {fault}" for fault in FAULTS}
    assert seen >= {"forgotten", "posted", "answered", "shown", "refused", "kept"}


def test_a_seed_gives_the_same_history_in_every_process() -> None:
    result = Simulation(7, steps=STEPS // 5).run()
    assert result == Simulation(7, steps=STEPS // 5).run()
    assert result.digest != Simulation(8, steps=STEPS // 5).run().digest
    for hash_seed in ("0", "4711"):
        assert result_in_new_process(7, hash_seed) == result


def result_in_new_process(seed: int, hash_seed: str) -> RunResult:
    """Run the command for a seed in a new process, and return its result."""
    command = [sys.executable, str(SIMULATE), str(seed), "--steps", str(STEPS // 5)]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    completed = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=300)
    return msgspec.json.decode(completed.stdout, type=RunResult)


def test_a_failing_run_prints_the_command_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(query, "redacted", lambda _, job: job)
    broken = broken_within(MAX_STEPS_TO_VIOLATION, undo_seconds=2)
    _, command = broken.split("again: ")
    monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
    assert simulate.main() == 1
    assert broken in capsys.readouterr().out


# The simulated world


def two_loops() -> tuple[World, SimLoop, SimLoop]:
    world = World(1)
    return (
        world,
        SimLoop(world, Clock(world.random_float, is_true=True)),
        SimLoop(world, Clock(world.random_float, is_true=True)),
    )


def test_a_day_of_simulated_time_takes_few_steps() -> None:
    world, loop, _ = two_loops()
    world.run(asyncio.sleep(24 * 3600), loop)
    assert world.now == 24 * 3600
    assert world.steps < 10


def test_a_killed_loop_runs_no_more_code_not_even_finally() -> None:
    world, outside, loop = two_loops()
    ran: list[str] = []

    async def works() -> None:
        try:
            await asyncio.sleep(5)
            ran.append("on")
        finally:
            ran.append("finally")

    async def kills() -> None:
        await asyncio.sleep(1)
        loop.kill()
        await asyncio.sleep(10)
        assert not ran

    loop.create_task(works())
    world.run(kills(), outside)
    loop.bury()
    assert ran == ["finally"], "only Python's own burial, when nobody is there to see it"


def test_a_paused_loop_resumes_where_it_was_after_time_has_passed() -> None:
    world, outside, loop = two_loops()
    woke: list[float] = []

    async def sleeps() -> None:
        await asyncio.sleep(2)
        woke.append(world.now)

    async def pauses() -> None:
        await asyncio.sleep(1)
        loop.pause()
        await asyncio.sleep(60)
        assert not woke
        loop.go_on()
        await asyncio.sleep(1)

    loop.create_task(sleeps())
    world.run(pauses(), outside)
    assert woke == [61]


def test_the_seed_decides_the_order_of_ready_callbacks() -> None:
    def order(seed: int) -> list[int]:
        world, ran = World(seed), list[int]()
        loop = SimLoop(world, Clock(world.random_float, is_true=True))
        for number in range(20):
            loop.call_soon(ran.append, number)
        world.run(asyncio.sleep(1), loop)
        return ran

    assert order(1) == order(1) != order(2)
    assert sorted(order(2)) == list(range(20))


# Mutants: the core without one of its safeguards


def without(verb: str, guard: Guard) -> Tables:
    """Return tables that do not check `guard` for `verb`."""
    transition = TRANSITIONS[verb]
    guards = tuple(other for other in transition.guards if other is not guard)
    return Tables(TRANSITIONS | {verb: msgspec.structs.replace(transition, guards=guards)})


def broken_within(steps: int, tables: Callable[[], Tables] = Tables, **climate: Any) -> str:
    """Return the message of the first run that breaks a law; empty if none does within `steps` steps."""
    seed = 0
    while steps > 0:
        simulation = Simulation(seed, steps=min(steps, STEPS), tables=tables(), **climate)
        try:
            steps -= simulation.run().steps
        except Broken as broken:
            return str(broken)
        seed += 1
    return ""


ROUGH: Mapping[str, Any] = {"processes": 3, "faults": ("pause", "stop", "slow store"), "steps_between_faults": 400}
SLEEPY = {**ROUGH, "model_seconds": (0.3, 3, 8), "drain_seconds": 0}
BUSY = {"reviewers": 4, "processes": 3}

MUTANTS: dict[tuple[str, Guard], tuple[dict[str, Any], str]] = {
    ("claim", Guard.DUE): ({}, "nothing is claimed before its time|a live lease is nobody else's"),
    ("succeed", Guard.LEASE): (SLEEPY, "a stale worker cannot settle"),
    ("hold", Guard.LEASE): (SLEEPY, "a stale worker cannot settle"),
    ("fail", Guard.LEASE): (SLEEPY | {"faults": ("pause", "bad models")}, "a stale worker cannot settle"),
    ("retry", Guard.LEASE): (SLEEPY | {"faults": ("pause", "bad models")}, "a stale worker cannot settle"),
    ("lapse", Guard.LAPSED): ({}, "a lease lapses when it has run out"),
    ("decide", Guard.ROUND): (BUSY, "a reviewer decides about what they saw"),
    ("decide", Guard.UNOPENED): (BUSY, "what one reviewer has open is not another's"),
    ("decide", Guard.UNDECIDED): (BUSY | {"undo_seconds": 8}, "a caller never meets a fault of ours"),
    ("undo", Guard.UNRELEASED): (BUSY | {"undo_seconds": 2}, "only what waits is undone"),
    ("approve", Guard.RELEASED): ({"undo_seconds": 8}, "a verdict takes effect at its time"),
    ("expire", Guard.OVERDUE): ({"deadline_seconds": 20}, "a review expires at its deadline"),
    ("expire", Guard.UNDECIDED): ({"deadline_seconds": 5, "undo_seconds": 8}, "a review expires at its deadline"),
}


FOUND_SLOWLY = {("fail", Guard.LEASE), ("undo", Guard.UNRELEASED)}


@pytest.mark.parametrize(
    ("verb", "guard"),
    [pytest.param(*each, marks=pytest.mark.long if each in FOUND_SLOWLY else ()) for each in MUTANTS],
    ids=str,
)
def test_a_transition_without_a_guard_breaks_a_law(verb: str, guard: Guard) -> None:
    climate, law = MUTANTS[verb, guard]
    assert re.search(law, broken_within(MAX_STEPS_TO_VIOLATION, lambda: without(verb, guard), **climate))


def test_a_terminal_status_that_can_change_breaks_a_law() -> None:
    cancel = msgspec.structs.replace(TRANSITIONS["cancel"], sources=("bot", "human", "success"))
    broken = broken_within(MAX_STEPS_TO_VIOLATION, lambda: Tables(TRANSITIONS | {"cancel": cancel}))
    assert "terminal is terminal" in broken


def test_a_claim_that_ignores_a_live_lease_breaks_a_law() -> None:
    def tables() -> Tables:
        mutant = Tables()
        mutant.guards[Guard.DUE] = lambda job, request, now: job.due_at <= now
        return mutant

    assert "a live lease is nobody else's" in broken_within(MAX_STEPS_TO_VIOLATION, tables)


def test_releasing_a_job_after_losing_its_lease_breaks_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Release a job even after its lease is lost, at a store that allows it."""

    async def no_other(_name: str) -> bool:
        return False

    async def release_always(services: Services, job: Job) -> None:
        task = asyncio.current_task()
        assert task is not None
        attempt = Attempt(job, stream=False)
        with services.runtime.leases.holding(job.id, job.lease or "", task.cancel):
            try:
                attempt.start()
                await ask_model(services, attempt)
                attempt.outcome = answer_of(attempt.job, attempt.body, attempt.events)
                await judge(services, attempt, perform.perform, no_other)
                await settle(services, attempt.job, attempt.outcome)
            except asyncio.CancelledError:
                await perform._JobRecorder(services, attempt).cut_off()
                raise

    monkeypatch.setattr(worker, "perform", release_always)
    broken = broken_within(MAX_STEPS_TO_VIOLATION, lambda: without("release", Guard.LEASE), **SLEEPY)
    assert "a stale worker cannot settle: ('release'" in broken


def test_a_delivery_inserted_after_the_transition_breaks_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[tuple[Job, str]] = []

    class Late(Tables):
        def run(self, operation: Operation, now: int) -> Any:
            result = super().run(operation, now)
            while ended:
                super().run(lambda tx: create_deliveries(tx, *ended.pop()), now)  # type: ignore[arg-type]
            return result

    monkeypatch.setattr(jobs, "create_deliveries", lambda _, job, verb: ended.append((job, verb)))
    assert "the move that ends a job inserts its delivery" in broken_within(MAX_STEPS_TO_VIOLATION, Late)


def test_a_delivery_of_a_cancelled_job_breaks_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "create_deliveries", lambda tx, job, _: create_deliveries(tx, job, "fail"))
    assert "the move that ends a job inserts its delivery" in broken_within(MAX_STEPS_TO_VIOLATION)


def test_a_forgotten_idempotency_key_breaks_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.MemoryJobs, "_standing_under_key", lambda *_: None)
    assert "one key, one job" in broken_within(MAX_STEPS_TO_VIOLATION)


def test_a_key_that_joins_different_requests_breaks_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "check_same", lambda *_: None)
    assert "a key joins the same ask only" in broken_within(MAX_STEPS_TO_VIOLATION)


def test_an_answer_that_is_not_redacted_breaks_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "redacted", lambda _, job: job)
    assert "nothing held is seen" in broken_within(MAX_STEPS_TO_VIOLATION)


def test_leases_that_never_lapse_break_a_law() -> None:
    def tables() -> Tables:
        mutant = Tables()
        mutant.guards[Guard.LAPSED] = lambda job, request, now: False
        return mutant

    assert "queues drain" in broken_within(MAX_STEPS_TO_VIOLATION, tables, faults=("crash",))


# Regressions that the simulation found


def a_quiet_world(seconds: float, *, log_before_answer: bool = False) -> tuple[Simulation, Process]:
    """Return a simulation without users and faults, and its only process; its model takes `seconds` on average."""
    quiet: dict[str, Any] = {"processes": 1, "users": 0, "reviewers": 0, "faults": ()}
    simulation = Simulation(1, log_before_answer=log_before_answer, **quiet)
    simulation.weather.model_seconds = (seconds,)
    return simulation, simulation.processes[0]


async def call_and_wait(process: Process) -> tuple[Job, bytes | None]:
    """Return the job and the answer that a waiting caller gets."""
    ask = Ask(door="test", caller=CALLER, body=body_of("hello"), target="plain", lane="now")
    return await process.ask(lambda services: answer(services, ask), 300)


async def until_up(process: Process) -> None:
    while not process.is_up:
        await asyncio.sleep(0.1)


def test_a_slow_call_is_stored_after_a_second_even_if_the_clock_is_set_back() -> None:
    simulation, process = a_quiet_world(seconds=100_000)

    async def story() -> None:
        await until_up(process)
        async with asyncio.TaskGroup() as calls:
            call = calls.create_task(call_and_wait(process))
            await asyncio.sleep(0.3)
            process.clock.jump(-3600)
            await asyncio.sleep(1.5)
            assert not call.done()
            assert [job.status for job in simulation.tables.jobs.values()] == ["bot"]
            call.cancel()

    simulation.run(story)


def test_a_slow_call_with_an_unconfirmed_row_is_recorded_with_its_answer() -> None:
    simulation, process = a_quiet_world(seconds=2)
    answered: list[tuple[Job, bytes | None]] = []

    async def story() -> None:
        await until_up(process)
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(call_and_wait(process)) for _ in range(30)]
            await asyncio.sleep(0.5)
            simulation.weather.answers_lost = 1  # the rows of all slow calls are committed in this time
            await asyncio.sleep(1.2)
            simulation.weather.answers_lost = 0
        answered.extend(call.result() for call in calls)
        await asyncio.sleep(60)

    simulation.run(story)
    recorded = [simulation.tables.jobs[job.id] for job, _ in answered]
    assert [(job.status, job.response) for job in recorded] == [("success", body) for _, body in answered]


def test_a_call_with_an_unconfirmed_record_is_not_recorded_twice() -> None:
    simulation, process = a_quiet_world(seconds=0.1, log_before_answer=True)

    async def story() -> None:
        await until_up(process)
        simulation.weather.answers_lost = 1
        simulation.tables.listeners.append(lambda topic, name: simulation.weather.clear())  # only the first is lost
        with pytest.raises(Overloaded):  # callers may see this error, but no internal one
            await call_and_wait(process)

    simulation.run(story)
    assert [job.status for job in simulation.tables.jobs.values()] == ["success"]
