"""What every store keeps of runs: their steps, the calls of functions, and what the end of one means for the other."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest

from signoff.core.job import Decision, FunctionCall, Job, JobError
from signoff.errors import Stale
from signoff.store import TransitionRequest
from signoff.stores.jobs import KEY_LIFETIME_US
from signoff.stores.schema import jobs
from stores import ANSWER, AStore, a_job, a_step, execute, inserted, is_refused, leased, state, together

pytestmark = pytest.mark.anyio

FAILED = JobError(code="model_error", message="No.", status=400)


def a_place(run: Job, node: str = "0.0") -> dict[str, Any]:
    return {"parent_id": run.id, "parent_round": run.round, "node": node}


async def a_run(store: AStore, **more: Any) -> Job:
    """A run that a worker holds with the lease `mine`."""
    return await leased(store, **({"pipeline_id": 1, "attempt": 1} | more))


async def a_step_of(store: AStore, run: Job, node: str = "0.0", **more: Any) -> Job:
    """A step that is asked, with the lease `mine`."""
    step = a_job(**(a_place(run, node) | {"lease": "mine", "attempt": 1} | more))
    return await store.runs.add_step(step, actor="worker", run_lease=run.lease or "", lease_seconds=60)


async def a_held_step(store: AStore, run: Job, node: str = "0.0") -> Job:
    step = await a_step_of(store, run, node)
    return await store.jobs.transition(step.id, a_step("hold", changes={"response": ANSWER}))


async def parked(store: AStore, run: Job, settled: int = 0) -> Job:
    return await store.jobs.transition(run.id, a_step("park", settled_steps=settled, after_seconds={"parked_at": 0}))


def a_call(run: Job, node: str = "0.1", **more: Any) -> FunctionCall:
    plain: dict[str, Any] = {"name": "add", "arguments": b"{}", "output": b"3", "began_at": 1, "ended_at": 2}
    return FunctionCall(**(plain | {"job_id": run.id, "round": run.round, "node": node} | more))


async def verbs(store: AStore, job: Job) -> list[str]:
    return [event.verb for event in await store.jobs.events(job.id)]


# Steps


async def test_a_step_is_leased_from_its_first_moment_and_belongs_to_its_run(store: AStore) -> None:
    run = await a_run(store)

    step = await a_step_of(store, run)

    assert (step.parent_id, step.parent_round, step.node, step.lease) == (run.id, 0, "0.0", "mine")
    assert step.lease_until == step.created_at + 60_000_000
    assert await store.runs.steps(run.id, 0) == [step]
    assert await store.runs.steps(run.id, 1) == []
    assert await verbs(store, step) == ["submit"]


async def test_a_step_is_made_once(store: AStore, other: AStore) -> None:
    run = await a_run(store)

    made = await together(a_step_of([store, other][turn % 2], run) for turn in range(10))

    assert len({step.id for step in made}) == 1
    assert await store.runs.steps(run.id, 0) == made[:1]


async def test_another_place_and_another_round_have_a_step_of_their_own(store: AStore) -> None:
    run = await a_run(store)
    again = msgspec.structs.replace(run, round=1)

    steps = [await a_step_of(store, run), await a_step_of(store, run, "0.1"), await a_step_of(store, again)]

    assert await store.runs.steps(run.id, 0) == steps[:2]
    assert await store.runs.steps(run.id, 1) == steps[2:]
    assert await store.runs.steps(run.id) == steps


@pytest.mark.parametrize("lost", ["theirs", "ended"])
async def test_who_does_not_hold_the_run_adds_nothing_to_it(store: AStore, lost: str) -> None:
    run = await a_run(store)
    if lost == "ended":
        await store.jobs.transition(run.id, a_step("cancel"))
    else:
        run = msgspec.structs.replace(run, lease="theirs")

    with pytest.raises(Stale):
        await a_step_of(store, run)
    with pytest.raises(Stale):
        await store.runs.add_call(a_call(run), run_lease=run.lease or "")

    assert (await store.runs.steps(run.id, 0), await store.runs.calls(run.id, 0)) == ([], [])


async def test_a_call_is_kept_once(store: AStore) -> None:
    run = await a_run(store)
    first, second = a_call(run), a_call(run, output=b"4")

    assert await store.runs.add_call(first, run_lease="mine") == first
    assert await store.runs.add_call(second, run_lease="mine") == first

    refused = a_call(run, "0.2", output=None, error=FAILED)
    assert await store.runs.add_call(refused, run_lease="mine") == refused
    assert await store.runs.calls(run.id, 0) == [first, refused]
    assert await store.runs.calls(run.id, 1) == []


# Park and wake


async def test_a_parked_run_is_claimed_by_nobody_and_its_attempt_is_given_back(store: AStore) -> None:
    run = await a_run(store)
    await a_held_step(store, run)

    run = await parked(store, run)

    assert (run.status, run.lease, run.attempt, run.parked_at) == ("bot", None, 0, run.updated_at)
    assert await store.jobs.claim(actor="worker", lease="theirs", limit=9, lease_seconds=60) == []


async def test_a_run_does_not_park_when_a_step_settled_that_it_has_not_seen(store: AStore) -> None:
    run = await a_run(store)
    await a_held_step(store, run)
    other = await a_step_of(store, run, "0.1")
    await store.jobs.transition(other.id, a_step("succeed", changes={"response": ANSWER}))

    assert await is_refused(store, run, a_step("park", settled_steps=0, after_seconds={"parked_at": 0}))

    assert (await parked(store, run, settled=1)).parked_at is not None


@pytest.mark.parametrize("verdict", ["approve", "reject"])
async def test_a_verdict_on_a_held_step_wakes_its_run_in_the_same_moment(store: AStore, verdict: Any) -> None:
    run = await a_run(store)
    step = await a_held_step(store, run)
    await parked(store, run)
    decision = Decision(verdict=verdict, reviewer="ann")
    decide = a_step("decide", changes={"decision": decision}, after_seconds={"release_at": 0}, decision=decision)

    ended = await store.jobs.transition(step.id, decide, a_step(verdict, actor="user:bob"))

    found = await store.jobs.get(run.id)
    assert found is not None
    assert (found.parked_at, found.due_at, found.updated_at) == (None, ended.updated_at, ended.updated_at)
    assert (await store.jobs.events(run.id))[-1].actor == "user:bob"
    assert await verbs(store, run) == ["submit", "park", "wake"]
    [claimed] = await store.jobs.claim(actor="worker", lease="theirs", limit=9, lease_seconds=60)
    assert (claimed.id, claimed.attempt) == (run.id, 1)


async def test_a_step_that_is_asked_again_leaves_its_run_parked(store: AStore) -> None:
    run = await a_run(store)
    step = await a_held_step(store, run)
    await parked(store, run)
    decision = Decision(verdict="redo", reviewer="ann")
    decide = a_step("decide", changes={"decision": decision}, after_seconds={"release_at": 0}, decision=decision)

    await store.jobs.transition(step.id, decide, a_step("redo", after_seconds={"due_at": 0}))

    assert [job.id for job in await store.jobs.claim(actor="w", lease="theirs", limit=9, lease_seconds=60)] == [step.id]
    await store.jobs.transition(step.id, a_step("succeed", lease="theirs", changes={"response": ANSWER}))
    assert await verbs(store, run) == ["submit", "park", "wake"]


async def test_a_run_that_nobody_woke_is_found(store: AStore) -> None:
    run, waiting, awake = await a_run(store), await a_run(store), await a_run(store)
    await parked(store, run)
    await a_held_step(store, waiting)
    await parked(store, waiting)
    steps = [await a_step_of(store, awake), await a_held_step(store, awake, "0.1")]
    await parked(store, awake)
    await store.jobs.transition(steps[0].id, a_step("succeed", changes={"response": ANSWER}))

    found = await store.runs.stalled(9)

    assert [job.id for job in found] == [run.id]
    await store.jobs.transition(run.id, TransitionRequest(verb="wake", actor="sweeper", after_seconds={"due_at": 0}))
    assert await store.runs.stalled(9) == []


async def test_parking_and_settling_at_once_never_leave_a_run_asleep(store: AStore, other: AStore) -> None:
    async def race(turn: int) -> None:
        run = await a_run(store)
        step = await a_step_of(store, run)
        await a_held_step(store, run, "0.1")

        async def park() -> None:
            with contextlib.suppress(Stale):
                await parked([store, other][turn % 2], run)

        await together([park(), other.jobs.transition(step.id, a_step("succeed", changes={"response": ANSWER}))])
        found = await store.jobs.get(run.id)
        assert found is not None
        assert found.parked_at is None

    await together(race(turn) for turn in range(20))


# Ends


@pytest.mark.parametrize("verb", ["cancel", "fail", "lapse"])
async def test_what_goes_on_below_a_run_ends_with_it(store: AStore, verb: str) -> None:
    run = await leased(store, pipeline_id=1)
    if verb == "lapse":
        run = await inserted(store, pipeline_id=1, lease="mine", lease_seconds=-1)
    asked, held = await a_step_of(store, run), await a_held_step(store, run, "0.1")
    done = await a_step_of(store, run, "0.2")
    done = await store.jobs.transition(done.id, a_step("succeed", changes={"response": ANSWER}))
    inner = await a_step_of(store, run, "0.3", pipeline_id=2)
    below = await a_step_of(store, inner)

    await store.jobs.transition(run.id, a_step(verb, to="fail", changes={"error": FAILED}))

    for job in (asked, held, inner, below):
        found, events = await state(store, job.id)
        assert found is not None
        assert found.error is not None
        assert (found.status, found.error.code, found.lease) == ("fail", "cancelled", None)
        assert (events[-1].verb, events[-1].actor) == ("cancel", "user:ann")
    assert await store.jobs.get(done.id) == done


async def test_a_run_that_fails_leaves_the_steps_of_others_alone(store: AStore) -> None:
    run, other = await a_run(store), await a_run(store)
    theirs, plain = await a_step_of(store, other), await leased(store)

    await store.jobs.transition(run.id, a_step("fail", changes={"error": FAILED}))

    assert [await store.jobs.get(job.id) for job in (theirs, plain)] == [theirs, plain]


async def test_a_step_is_not_forgotten_while_its_run_goes_on(store: AStore) -> None:
    run = await a_run(store)
    step = await a_step_of(store, run)
    await store.runs.add_call(a_call(run), run_lease="mine")
    await store.jobs.transition(step.id, a_step("succeed", changes={"response": ANSWER}))
    await execute(store, jobs.update().values(updated_at=1))

    assert await store.jobs.purge(KEY_LIFETIME_US / 1_000_000, 9) == 0

    await store.jobs.transition(run.id, a_step("succeed", changes={"response": ANSWER}))
    assert await store.jobs.purge(-1, 9) == 2
    assert (await store.runs.steps(run.id, 0), await store.runs.calls(run.id, 0)) == ([], [])


async def test_a_run_is_made_again_with_what_it_need_not_ask(store: AStore) -> None:
    run = a_job(pipeline_id=1)
    done = a_job(status="success", response=ANSWER, **a_place(run))
    waiting = a_job(**a_place(run, "0.1"))
    call = a_call(run, "0.2")

    made = await store.runs.insert_again(run, [done, waiting], [call], actor="user:ann")

    assert made == await store.jobs.get(run.id)
    assert [(step.id, step.status) for step in await store.runs.steps(run.id, 0)] == [
        (done.id, "success"),
        (waiting.id, "bot"),
    ]
    assert await store.runs.calls(run.id, 0) == [call]
    claimed = await store.jobs.claim(actor="worker", lease="mine", limit=9, lease_seconds=60)
    assert {job.id for job in claimed} == {run.id, waiting.id}
