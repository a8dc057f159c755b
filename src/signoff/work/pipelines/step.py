"""Step: the job of one call of a run, a prompt's or another pipeline's, until it has ended or waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from signoff.core.access import Caller
from signoff.core.ask import Ask, path_for
from signoff.core.cache import Fresh, Sampling
from signoff.core.endpoints import CHAT, PREDICT
from signoff.core.job import Asked, Job
from signoff.core.pipelines.composed import Pipeline, Prompt
from signoff.core.pipelines.template import filled
from signoff.core.policy import policy_for
from signoff.errors import Stale, StepFailed
from signoff.store import Step
from signoff.work.inference.caching import key_for, recalled
from signoff.work.jobs.query import find, wait_for
from signoff.work.services import Desk

Performs = Callable[[Desk, Job], Awaitable[None]]
LOOK_SECONDS = 1.0
SOON_SECONDS = 0.02
# A run for later does not keep a worker busy while one of its steps is put off for longer than that.
PUT_OFF_SECONDS = 2.0


class Placed(NamedTuple):
    """A call of a run: where it stands, what it calls, and with which values."""

    node: str
    callee: Prompt | Pipeline
    values: Mapping[str, str]


async def new_step(desk: Desk, run: Job, caller: Caller, placed: Placed) -> Job:
    """The job of a call, leased, and not written anywhere yet. Raises ModelNotFound."""
    callee = placed.callee
    kind = "prompt" if isinstance(callee, Prompt) else "pipeline"
    asked = Asked(kind=kind, name=callee.name, version=callee.version, arguments=dict(placed.values))
    of_run: dict[str, Any] = {
        "id": desk.new_id(),
        "status": "bot",
        "door": run.door,
        "lane": run.lane,
        "user_id": run.user_id,
        "token_id": run.token_id,
        "priority": run.priority,
        "key_id": run.key_id,
        "metadata": msgspec.json.encode(asked),
        "parent_id": run.id,
        "parent_round": run.round,
        "node": placed.node,
        "attempt": 1,
        "lease": desk.new_id(),
    }
    if isinstance(callee, Pipeline):
        return _nested(desk, of_run | {"cache": run.cache}, callee, placed.values)
    fresh = Fresh(no_store=run.cache == "bypass", no_cache=run.cache == "miss")
    return await _prompted(desk, of_run, callee, filled(callee.body, placed.values), caller=caller, fresh=fresh)


def failure_of_step(step: Job) -> StepFailed:
    """The error of a run whose `step` has failed, which names the call."""
    asked, error = msgspec.json.decode(step.metadata, type=Asked), step.error
    why = error.message if error else "it ended without an answer"
    failure = StepFailed(f"`{asked.name}` failed: {why}", job_id=step.parent_id)
    if error is not None:
        failure.status, failure.code = error.status, error.code
    return failure


async def settled(desk: Desk, step: Job, ask: Performs) -> Job:
    """The step once it has ended well, or while it waits for a person or is put off. Raises StepFailed."""
    while True:
        step = await find(desk, step.id)
        match step.status:
            case "success" | "human":
                return step
            case "fail":
                raise failure_of_step(step)
            case "bot":
                due_in = (step.due_at - desk.clock()) / 1_000_000
                is_put_off = step.lane == "later" and step.lease is None and due_in > PUT_OFF_SECONDS
                if is_put_off or step.parked_at is not None:
                    return step
                await _go_on(desk, step, ask, due_in)


async def _go_on(desk: Desk, step: Job, ask: Performs, due_in: float) -> None:
    """Asks it, once it is due and if nobody else does; else waits a while for it to change."""
    if step.lease is None and due_in <= 0 and (claimed := await _claimed(desk, step)) is not None:
        await ask(desk, claimed)
        return
    seconds = LOOK_SECONDS if step.lease else min(max(due_in, SOON_SECONDS), LOOK_SECONDS)
    await wait_for(desk, step.id, seconds, lambda job: job.seq != step.seq)


async def _claimed(desk: Desk, step: Job) -> Job | None:
    claim = Step(
        verb="claim",
        actor=desk.actor,
        changes={"lease": desk.new_id()},
        after_seconds={"lease_until": desk.rules.lease_seconds},
    )
    try:
        return await desk.store.jobs.move(step.id, claim)
    except Stale:
        return None


def _nested(desk: Desk, of_run: dict[str, Any], pipeline: Pipeline, values: Mapping[str, str]) -> Job:
    return Job(
        **of_run,
        target=pipeline.name,
        model=pipeline.name,
        pipeline_id=pipeline.id,
        pipeline_version=pipeline.version,
        path=PREDICT,
        body=msgspec.json.encode(dict(values)),
        max_attempts=desk.rules.later_attempts,
    )


async def _prompted(
    desk: Desk, of_run: dict[str, Any], prompt: Prompt, text: str, *, caller: Caller, fresh: Fresh
) -> Job:
    """The step that asks the prompt's model; it has ended already where the cache has its answer."""
    model, rules, lane = await desk.models.find(prompt.model), desk.rules, of_run["lane"]
    target = prompt.model or model.name
    messages = [{"role": "user", "content": text}]
    body = msgspec.json.encode({"model": target, "messages": messages})
    path, policy = path_for(model, CHAT, body), policy_for(model.review, "never", rules.policy)
    ask = Ask(door=of_run["door"], caller=caller, path=path, body=body, target=target, lane=lane, fresh=fresh)
    cache_key = key_for(desk, ask, model, policy, Sampling(), path)
    step = Job(
        **of_run,
        target=target,
        model=model.name,
        path=path,
        body=body,
        prompt=prompt.name,
        prompt_version=prompt.version,
        policy=policy,
        max_attempts=model.attempts or (rules.now_attempts if lane == "now" else rules.later_attempts),
        cache="bypass" if cache_key is None else "miss",
        cache_key=cache_key,
    )
    return await recalled(desk, ask, step) or step
