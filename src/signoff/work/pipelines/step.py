"""Steps: jobs for the calls of a run, of a prompt or another pipeline, until they have ended or wait."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from signoff.core.access import Caller
from signoff.core.api_paths import CHAT, PREDICT
from signoff.core.ask import Ask, path_for
from signoff.core.cache import CacheControl, Sampling
from signoff.core.job import Job, StepCall
from signoff.core.pipelines.composed import Pipeline, Prompt
from signoff.core.pipelines.template import render_template
from signoff.core.reviews.policy import policy_for
from signoff.core.reviews.request_values import RequestContext
from signoff.errors import Stale, StepFailed
from signoff.store import TransitionRequest
from signoff.work.inference.caching import cache_key_for, lookup_answer
from signoff.work.jobs.query import load_job, wait_until
from signoff.work.reviews.policies import govern, govern_job
from signoff.work.services import Perform, Services
from signoff.work.tracing import carry_trace

MAX_POLL_SECONDS = 1.0
MIN_POLL_SECONDS = 0.02
# A queued run gives its worker back while a step is postponed for longer than this.
MAX_POSTPONED_SECONDS = 2.0


class NodeCall(NamedTuple):
    """A call in the tree of a run."""

    node: str
    """The position of the call in the tree, such as `0.1`."""
    callee: Prompt | Pipeline
    """The prompt or pipeline that is called."""
    values: Mapping[str, str]
    """The arguments by name."""


async def new_step(services: Services, run: Job, caller: Caller, placed: NodeCall) -> Job:
    """Return the job of a call, leased, which is not stored yet. Raises ModelNotFound, BadRequest."""
    callee = placed.callee
    kind = "prompt" if isinstance(callee, Prompt) else "pipeline"
    call = StepCall(kind=kind, name=callee.name, version=callee.version, arguments=dict(placed.values))
    fields: dict[str, Any] = {
        "id": services.ids.new_id(),
        "status": "bot",
        "door": run.door,
        "lane": run.lane,
        "user_id": run.user_id,
        "token_id": run.token_id,
        "priority": run.priority,
        "key_id": run.key_id,
        "metadata": msgspec.json.encode(call),
        "parent_id": run.id,
        "parent_round": run.round,
        "node": placed.node,
        "attempt": 1,
        "lease": services.ids.new_id(),
    }
    if isinstance(callee, Pipeline):
        step = await _pipeline_step(services, fields | {"cache": run.cache}, callee, placed.values)
        return carry_trace(services, step)
    cache = CacheControl(no_store=run.cache == "bypass", no_cache=run.cache == "miss")
    text = render_template(callee.body, placed.values, max_bytes=services.rules.max_body_bytes)
    return carry_trace(services, await _prompt_step(services, fields, callee, text, caller=caller, cache=cache))


def step_error(step: Job) -> StepFailed:
    """Return the error of a run whose `step` has failed; its message names the call."""
    call, error = msgspec.json.decode(step.metadata, type=StepCall), step.error
    reason = error.message if error else "it ended without an answer"
    failure = StepFailed(f"`{call.name}` failed: {reason}", job_id=step.parent_id)
    if error is not None:
        failure.status, failure.code = error.status, error.code
    return failure


async def await_step(services: Services, step: Job, perform: Perform) -> Job:
    """Return the step once it has succeeded, or while it waits for a review, is parked or postponed.

    `perform` is called with the step whenever it is due and has no lease. Raises StepFailed.
    """
    while True:
        step = await load_job(services, step.id)
        match step.status:
            case "success" | "human":
                return step
            case "fail":
                raise step_error(step)
            case "bot":
                due_in = (step.due_at - services.clock()) / 1_000_000
                is_postponed = step.lane == "later" and step.lease is None and due_in > MAX_POSTPONED_SECONDS
                if is_postponed or step.parked_at is not None:
                    return step
                await _advance(services, step, perform, due_in)


async def _advance(services: Services, step: Job, perform: Perform, due_in: float) -> None:
    """Perform the step if it is due and has no lease; else wait for a change of it, at most MAX_POLL_SECONDS.

    The clock of the database, which decides whether it is due, may be behind the one of this process.
    """
    is_free = step.lease is None and due_in <= 0
    if is_free and (claimed := await _claim(services, step)) is not None:
        await perform(services, claimed)
        return
    seconds = min(max(due_in, MIN_POLL_SECONDS), MAX_POLL_SECONDS)
    if step.lease or is_free:
        seconds = MAX_POLL_SECONDS
    await wait_until(services, step.id, seconds, lambda job: job.seq != step.seq)


async def _claim(services: Services, step: Job) -> Job | None:
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


async def _pipeline_step(
    services: Services, fields: dict[str, Any], pipeline: Pipeline, values: Mapping[str, str]
) -> Job:
    step = Job(
        **fields,
        target=pipeline.name,
        model=pipeline.name,
        pipeline_id=pipeline.id,
        pipeline_version=pipeline.version,
        path=PREDICT,
        body=msgspec.json.encode(dict(values)),
        max_attempts=services.rules.later_attempts,
    )
    governed = await govern_job(services, step, step.policy)
    return msgspec.structs.replace(step, policy=governed.policy, ruling=governed.ruling)


async def _prompt_step(
    services: Services, fields: dict[str, Any], prompt: Prompt, text: str, *, caller: Caller, cache: CacheControl
) -> Job:
    """Return the step that calls the model of a prompt; it has ended already if the cache has its answer."""
    model, rules, lane = await services.caches.models.find(prompt.model), services.rules, fields["lane"]
    target = prompt.model or model.name
    messages = [{"role": "user", "content": text}]
    body = msgspec.json.encode({"model": target, "messages": messages})
    path = path_for(model, CHAT, body)
    context = RequestContext(
        path=path,
        target=target,
        model=model.name,
        door=fields["door"],
        body=body,
        prompt=prompt.name,
        user=caller.email,
    )
    governed = await govern(services, context, policy_for(model.review, "never", rules.policy))
    ask = Ask(door=fields["door"], caller=caller, path=path, body=body, target=target, lane=lane, cache_control=cache)
    cache_key = None
    if governed.is_cacheable:
        cache_key = cache_key_for(services, ask, model, governed.policy, sampling=Sampling(), path=path)
    step = Job(
        **fields,
        target=target,
        model=model.name,
        path=path,
        body=body,
        prompt=prompt.name,
        prompt_version=prompt.version,
        policy=governed.policy,
        ruling=governed.ruling,
        max_attempts=model.attempts or (rules.now_attempts if lane == "now" else rules.later_attempts),
        cache="bypass" if cache_key is None else "miss",
        cache_key=cache_key,
    )
    return await lookup_answer(services, ask, step) or step
