"""Contract tests of stores: runs, their steps, their function calls, and how the end of one affects the others."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest

from signoff.core.job import Decision, FunctionCall, Job, JobError
from signoff.core.usage import UsageTotals
from signoff.errors import Stale
from signoff.store import TransitionRequest
from signoff.stores.jobs import KEY_LIFETIME_US
from signoff.stores.schema import jobs
from support.stores import ANSWER, AStore, a_job, a_step, execute, inserted, is_refused, leased, state, together

pytestmark = pytest.mark.anyio

FAILED = JobError(code="model_error", message="No.", status=400)


def node_columns(run: Job, node: str = "0.0") -> dict[str, Any]:
    return {"parent_id": run.id, "parent_round": run.round, "node": node}


async def a_run(store: AStore, **more: Any) -> Job:
    """Return a run that a worker holds with the lease `mine`."""
    return await leased(store, **({"pipeline_id": 1, "attempt": 1} | more))


async def a_step_of(store: AStore, run: Job, node: str = "0.0", **more: Any) -> Job:
    """Return a step that is being performed with the lease `mine`."""
    step = a_job(**(node_columns(run, node) | {"lease": "mine", "attempt": 1} | more))
    return await store.runs.add_step(step, actor="worker", run_lease=run.lease or "", lease_seconds=60)


async def a_held_step(store: AStore, run: Job, node: str = "0.0") -> Job:
    step = await a_step_of(store, run, node)
    return await store.jobs.transition(step.id, a_step("hold", changes={"response": ANSWER}))


async def parked(store: AStore, run: Job, settled: int = 0) -> Job:
    return await store.jobs.transition(run.id, a_step("park", settled_steps=settled, after_seconds={"parked_at": 0}))


def a_call(run: Job, node: str = "0.1", **more: Any) -> FunctionCall:
    defaults: dict[str, Any] = {"name": "add", "arguments": b"{}", "output": b"3", "began_at": 1, "ended_at": 2}
    return FunctionCall(**(defaults | {"job_id": run.id, "round": run.round, "node": node} | more))


async def verbs(store: AStore, job: Job) -> list[str]:
    return [event.verb for event in await store.jobs.events(job.id)]


# Steps


async def test_a_step_is_created_leased_and_belongs_to_its_run(store: AStore) -> None:
    run = await a_run(store)

    step = await a_step_of(store, run)

    assert (step.parent_id, step.parent_round, step.node, step.lease) == (run.id, 0, "0.0", "mine")
    assert step.lease_until == step.created_at + 60_000_000
    assert await store.runs.steps(run.id, 0) == [step]
    assert await store.runs.steps(run.id, 1) == []
    assert await verbs(store, step) == ["submit"]


async def test_a_step_is_created_once(store: AStore, other: AStore) -> None:
    run = await a_run(store)

    steps = await together(a_step_of([store, other][turn % 2], run) for turn in range(10))

    assert len({step.id for step in steps}) == 1
    assert await store.runs.steps(run.id, 0) == steps[:1]


async def test_every_node_and_every_round_has_its_own_step(store: AStore) -> None:
    run = await a_run(store)
    next_round = msgspec.structs.replace(run, round=1)

    steps = [await a_step_of(store, run), await a_step_of(store, run, "0.1"), await a_step_of(store, next_round)]

    assert await store.runs.steps(run.id, 0) == steps[:2]
    assert await store.runs.steps(run.id, 1) == steps[2:]
    assert await store.runs.steps(run.id) == steps


@pytest.mark.parametrize("lost", ["theirs", "ended"])
async def test_without_the_lease_of_a_run_nothing_can_be_added_to_it(store: AStore, lost: str) -> None:
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


async def test_a_function_call_is_stored_once(store: AStore) -> None:
    run = await a_run(store)
    first, second = a_call(run), a_call(run, output=b"4")

    assert await store.runs.add_call(first, run_lease="mine") == first
    assert await store.runs.add_call(second, run_lease="mine") == first

    refused = a_call(run, "0.2", output=None, error=FAILED)
    assert await store.runs.add_call(refused, run_lease="mine") == refused
    assert await store.runs.calls(run.id, 0) == [first, refused]
    assert await store.runs.calls(run.id, 1) == []


# Park and wake


async def test_a_parked_run_cannot_be_claimed_and_its_attempt_does_not_count(store: AStore) -> None:
    run = await a_run(store)
    await a_held_step(store, run)

    run = await parked(store, run)

    assert (run.status, run.lease, run.attempt, run.parked_at) == ("bot", None, 0, run.updated_at)
    assert await store.jobs.claim(actor="worker", lease="theirs", limit=9, lease_seconds=60) == []


async def test_a_run_does_not_park_if_another_step_has_settled(store: AStore) -> None:
    run = await a_run(store)
    await a_held_step(store, run)
    other = await a_step_of(store, run, "0.1")
    await store.jobs.transition(other.id, a_step("succeed", changes={"response": ANSWER}))

    assert await is_refused(store, run, a_step("park", settled_steps=0, after_seconds={"parked_at": 0}))

    assert (await parked(store, run, settled=1)).parked_at is not None


@pytest.mark.parametrize("verdict", ["approve", "reject"])
async def test_a_verdict_on_a_held_step_wakes_its_run_in_the_same_transaction(store: AStore, verdict: Any) -> None:
    run = await a_run(store)
    step = await a_held_step(store, run)
    await parked(store, run)
    decision = Decision(verdict=verdict, reviewer="ann")
    decide = a_step("decide", changes={"decision": decision}, after_seconds={"release_at": 0}, decision=decision)

    ended = await store.jobs.transition(step.id, decide, a_step(verdict, actor="user:bob"))

    woken = await store.jobs.get(run.id)
    assert woken is not None
    assert (woken.parked_at, woken.due_at, woken.updated_at) == (None, ended.updated_at, ended.updated_at)
    assert (await store.jobs.events(run.id))[-1].actor == "user:bob"
    assert await verbs(store, run) == ["submit", "park", "wake"]
    [claimed] = await store.jobs.claim(actor="worker", lease="theirs", limit=9, lease_seconds=60)
    assert (claimed.id, claimed.attempt) == (run.id, 1)


async def test_a_step_that_is_redone_leaves_its_run_parked(store: AStore) -> None:
    run = await a_run(store)
    step = await a_held_step(store, run)
    await parked(store, run)
    decision = Decision(verdict="redo", reviewer="ann")
    decide = a_step("decide", changes={"decision": decision}, after_seconds={"release_at": 0}, decision=decision)

    await store.jobs.transition(step.id, decide, a_step("redo", after_seconds={"due_at": 0}))

    assert [job.id for job in await store.jobs.claim(actor="w", lease="theirs", limit=9, lease_seconds=60)] == [step.id]
    await store.jobs.transition(step.id, a_step("succeed", lease="theirs", changes={"response": ANSWER}))
    assert await verbs(store, run) == ["submit", "park", "wake"]


async def test_a_run_that_was_not_woken_is_listed_as_stalled(store: AStore) -> None:
    run, waiting, awake = await a_run(store), await a_run(store), await a_run(store)
    await parked(store, run)
    await a_held_step(store, waiting)
    await parked(store, waiting)
    steps = [await a_step_of(store, awake), await a_held_step(store, awake, "0.1")]
    await parked(store, awake)
    await store.jobs.transition(steps[0].id, a_step("succeed", changes={"response": ANSWER}))

    stalled = await store.runs.stalled(9)

    assert [job.id for job in stalled] == [run.id]
    await store.jobs.transition(run.id, TransitionRequest(verb="wake", actor="sweeper", after_seconds={"due_at": 0}))
    assert await store.runs.stalled(9) == []


async def test_concurrent_parking_and_settling_never_leave_a_run_parked(store: AStore, other: AStore) -> None:
    async def race(turn: int) -> None:
        run = await a_run(store)
        step = await a_step_of(store, run)
        await a_held_step(store, run, "0.1")

        async def park() -> None:
            with contextlib.suppress(Stale):
                await parked([store, other][turn % 2], run)

        await together([park(), other.jobs.transition(step.id, a_step("succeed", changes={"response": ANSWER}))])
        raced = await store.jobs.get(run.id)
        assert raced is not None
        assert raced.parked_at is None

    await together(race(turn) for turn in range(20))


# Ends


@pytest.mark.parametrize("verb", ["cancel", "fail", "lapse"])
async def test_unfinished_steps_end_with_their_run(store: AStore, verb: str) -> None:
    run = await leased(store, pipeline_id=1)
    if verb == "lapse":
        run = await inserted(store, pipeline_id=1, lease="mine", lease_seconds=-1)
    running, held = await a_step_of(store, run), await a_held_step(store, run, "0.1")
    done = await a_step_of(store, run, "0.2")
    done = await store.jobs.transition(done.id, a_step("succeed", changes={"response": ANSWER}))
    inner = await a_step_of(store, run, "0.3", pipeline_id=2)
    below = await a_step_of(store, inner)

    await store.jobs.transition(run.id, a_step(verb, to="fail", changes={"error": FAILED}))

    for job in (running, held, inner, below):
        ended, events = await state(store, job.id)
        assert ended is not None
        assert ended.error is not None
        assert (ended.status, ended.error.code, ended.lease) == ("fail", "cancelled", None)
        assert (events[-1].verb, events[-1].actor) == ("cancel", "user:ann")
    assert await store.jobs.get(done.id) == done


async def test_a_run_that_fails_leaves_the_steps_of_others_alone(store: AStore) -> None:
    run, other = await a_run(store), await a_run(store)
    theirs, plain = await a_step_of(store, other), await leased(store)

    await store.jobs.transition(run.id, a_step("fail", changes={"error": FAILED}))

    assert [await store.jobs.get(job.id) for job in (theirs, plain)] == [theirs, plain]


async def test_a_step_is_not_purged_while_its_run_is_unfinished(store: AStore) -> None:
    run = await a_run(store)
    step = await a_step_of(store, run)
    await store.runs.add_call(a_call(run), run_lease="mine")
    await store.jobs.transition(step.id, a_step("succeed", changes={"response": ANSWER}))
    await execute(store, jobs.update().values(updated_at=1))

    assert await store.jobs.purge(KEY_LIFETIME_US / 1_000_000, 9) == 0

    await store.jobs.transition(run.id, a_step("succeed", changes={"response": ANSWER}))
    assert await store.jobs.purge(-1, 9) == 2
    assert (await store.runs.steps(run.id, 0), await store.runs.calls(run.id, 0)) == ([], [])


async def test_a_rerun_is_inserted_with_its_finished_steps_and_calls(store: AStore) -> None:
    run = a_job(pipeline_id=1)
    done = a_job(status="success", response=ANSWER, **node_columns(run))
    waiting = a_job(**node_columns(run, "0.1"))
    call = a_call(run, "0.2")

    inserted_run = await store.runs.insert_retry(run, [done, waiting], [call], actor="user:ann")

    assert inserted_run == await store.jobs.get(run.id)
    assert [(step.id, step.status) for step in await store.runs.steps(run.id, 0)] == [
        (done.id, "success"),
        (waiting.id, "bot"),
    ]
    assert await store.runs.calls(run.id, 0) == [call]
    claimed = await store.jobs.claim(actor="worker", lease="mine", limit=9, lease_seconds=60)
    assert {job.id for job in claimed} == {run.id, waiting.id}


# Sizes


async def test_the_size_of_a_run_is_that_of_all_calls_of_its_current_rounds_at_every_depth(store: AStore) -> None:
    run = await a_run(store)
    assert await store.runs.size_bytes(run.id) == 0
    step = await a_step_of(store, run, "0.0", body=b"1234567", metadata=b"{}")
    nested = await a_step_of(store, run, "0.1", body=b"12", metadata=b"{}", pipeline_id=2)
    deep = await a_step_of(store, nested, "0", body=b"1", metadata=b"{}")
    await store.runs.add_call(a_call(nested, arguments=b"{...}", output=b"3"), run_lease="mine")
    for each in (run, nested):
        assert await store.runs.size_bytes(each.id) == (7 + 2) + (2 + 2) + (1 + 2) + (5 + 1)
    await store.jobs.transition(step.id, a_step("succeed", changes={"response": b"12345"}))
    assert await store.runs.size_bytes(deep.parent_id or "") == 22 + 5
    # the calls of an earlier round, and those of another run, do not count
    other = await a_run(store)
    await a_step_of(store, other, body=b"123")
    await store.runs.add_call(a_call(run, round=run.round + 1), run_lease="mine")
    await a_step_of(store, msgspec.structs.replace(run, round=run.round + 1), "0.2")
    assert await store.runs.size_bytes(run.id) == 27


async def test_the_costs_of_a_run_are_those_of_all_steps_below_it(store: AStore) -> None:
    run, other, empty = await a_run(store), await a_run(store), await a_run(store)
    await a_step_of(store, run, "0.0", cost_nanodollars=5, prompt_tokens=1)
    below = await a_step_of(store, run, "0.1", pipeline_id=2)
    await a_step_of(store, below, "0.0", cost_nanodollars=7, completion_tokens=2)
    await a_step_of(store, below, "0.1", prompt_tokens=3)  # its model has no price
    await a_step_of(store, other, "0.0", cost_nanodollars=11)
    costs = await store.runs.costs([run.id, other.id, empty.id])
    assert costs == {
        run.id: UsageTotals(jobs=4, unpriced=1, prompt_tokens=4, completion_tokens=2, cost_nanodollars=12),
        other.id: UsageTotals(jobs=1, cost_nanodollars=11),
    }
    assert await store.runs.costs([]) == {}
