"""Step: the job of one call of a run, a prompt's or another pipeline's, until it has ended or waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from signoff.core.access import Caller
from signoff.core.ask import Ask, path_for
from signoff.core.cache import CacheControl, Sampling
from signoff.core.endpoints import CHAT, PREDICT
from signoff.core.job import Job, StepCall
from signoff.core.pipelines.composed import Pipeline, Prompt
from signoff.core.pipelines.template import render_template
from signoff.core.policy import policy_for
from signoff.errors import Stale, StepFailed
from signoff.store import TransitionRequest
from signoff.work.inference.caching import cache_key_for, lookup_answer
from signoff.work.jobs.query import load_job, wait_until
from signoff.work.services import Services

Performs = Callable[[Services, Job], Awaitable[None]]
LOOK_SECONDS = 1.0
SOON_SECONDS = 0.02
# A run for later does not keep a worker busy while one of its steps is put off for longer than that.
PUT_OFF_SECONDS = 2.0


class PlacedCall(NamedTuple):
    """A call of a run: where it stands, what it calls, and with which values."""

    node: str
    callee: Prompt | Pipeline
    values: Mapping[str, str]


async def new_step(services: Services, run: Job, caller: Caller, placed: PlacedCall) -> Job:
    """The job of a call, leased, and not written anywhere yet. Raises ModelNotFound."""
    callee = placed.callee
    kind = "prompt" if isinstance(callee, Prompt) else "pipeline"
    asked = StepCall(kind=kind, name=callee.name, version=callee.version, arguments=dict(placed.values))
    of_run: dict[str, Any] = {
        "id": services.ids.new_id(),
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
        "lease": services.ids.new_id(),
    }
    if isinstance(callee, Pipeline):
        return _nested(services, of_run | {"cache": run.cache}, callee, placed.values)
    fresh = CacheControl(no_store=run.cache == "bypass", no_cache=run.cache == "miss")
    return await _prompted(
        services, of_run, callee, render_template(callee.body, placed.values), caller=caller, fresh=fresh
    )


def step_error(step: Job) -> StepFailed:
    """The error of a run whose `step` has failed, which names the call."""
    asked, error = msgspec.json.decode(step.metadata, type=StepCall), step.error
    why = error.message if error else "it ended without an answer"
    failure = StepFailed(f"`{asked.name}` failed: {why}", job_id=step.parent_id)
    if error is not None:
        failure.status, failure.code = error.status, error.code
    return failure


async def await_step(services: Services, step: Job, ask: Performs) -> Job:
    """The step once it has ended well, or while it waits for a person or is put off. Raises StepFailed."""
    while True:
        step = await load_job(services, step.id)
        match step.status:
            case "success" | "human":
                return step
            case "fail":
                raise step_error(step)
            case "bot":
                due_in = (step.due_at - services.clock()) / 1_000_000
                is_put_off = step.lane == "later" and step.lease is None and due_in > PUT_OFF_SECONDS
                if is_put_off or step.parked_at is not None:
                    return step
                await _go_on(services, step, ask, due_in)


async def _go_on(services: Services, step: Job, ask: Performs, due_in: float) -> None:
    """Asks it, once it is due and if nobody else does; else waits a while for it to change."""
    if step.lease is None and due_in <= 0 and (claimed := await _claimed(services, step)) is not None:
        await ask(services, claimed)
        return
    seconds = LOOK_SECONDS if step.lease else min(max(due_in, SOON_SECONDS), LOOK_SECONDS)
    await wait_until(services, step.id, seconds, lambda job: job.seq != step.seq)


async def _claimed(services: Services, step: Job) -> Job | None:
    claim = TransitionRequest(
        verb="claim",
        actor=services.ids.actor,
        changes={"lease": services.ids.new_id()},
        after_seconds={"lease_until": services.rules.lease_seconds},
    )
    try:
        return await services.store.jobs.transition(step.id, claim)
    except Stale:
        return None


def _nested(services: Services, of_run: dict[str, Any], pipeline: Pipeline, values: Mapping[str, str]) -> Job:
    return Job(
        **of_run,
        target=pipeline.name,
        model=pipeline.name,
        pipeline_id=pipeline.id,
        pipeline_version=pipeline.version,
        path=PREDICT,
        body=msgspec.json.encode(dict(values)),
        max_attempts=services.rules.later_attempts,
    )


async def _prompted(
    services: Services, of_run: dict[str, Any], prompt: Prompt, text: str, *, caller: Caller, fresh: CacheControl
) -> Job:
    """The step that asks the prompt's model; it has ended already where the cache has its answer."""
    model, rules, lane = await services.caches.models.find(prompt.model), services.rules, of_run["lane"]
    target = prompt.model or model.name
    messages = [{"role": "user", "content": text}]
    body = msgspec.json.encode({"model": target, "messages": messages})
    path, policy = path_for(model, CHAT, body), policy_for(model.review, "never", rules.policy)
    ask = Ask(door=of_run["door"], caller=caller, path=path, body=body, target=target, lane=lane, cache_control=fresh)
    cache_key = cache_key_for(services, ask, model, policy, Sampling(), path)
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
    return await lookup_answer(services, ask, step) or step
