"""History of runs: the log of a run, call by call, and rerunning a part of it with the other results unchanged."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from signoff.core.access import Caller, may_review
from signoff.core.dialects.answer import text_or_json
from signoff.core.job import FunctionCall, Job, JobError, StepCall
from signoff.core.pipelines.nodes import ancestors, calls_by_node
from signoff.core.pipelines.tree import Call
from signoff.core.price import NANO, dollars
from signoff.core.reviews.strictness import stricter
from signoff.core.usage import UsageTotals
from signoff.errors import BadRequest, Forbidden, LibraryItemNotFound, Stale
from signoff.work.inference.ownership import tighten_policy
from signoff.work.jobs.query import get_job, may_see_steps, redacted
from signoff.work.jobs.retry import copy_for_retry
from signoff.work.pipelines.run import pipeline_of
from signoff.work.reviews.readmit import admit_edited
from signoff.work.services import Services

State = Literal["waiting", "running", "held", "done", "failed"]
STATES: dict[str, State] = {"bot": "running", "human": "held", "success": "done", "fail": "failed"}

# Fields that a copied step does not have, as no model was called for it.
_CALL_FIELDS = ("usage", "cost_nanodollars", "queued_us", "ttft_us", "generation_us", "decision", "cache", "cache_key")


class LoggedCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a run. A field is None if it has no value yet, or if the caller may not see it."""

    node: str
    """The position of the call in the tree, such as `0.1`."""
    name: str
    """The name of the prompt, function or pipeline."""
    state: State = "waiting"
    """`waiting` before the call, `held` during a review."""
    kind: str | None = None
    """`prompt`, `function` or `pipeline`."""
    version: int | None = None
    """The version of the prompt or pipeline; None for a function."""
    arguments: Mapping[str, Any] | None = None
    """The arguments by name."""
    output: str | None = None
    """The result as text."""
    error: JobError | None = None
    """The error of a call that has failed."""
    usage: Mapping[str, Any] | None = None
    """The tokens of the answer; None for a function."""
    cost: str | None = None
    """The cost in dollars, as a decimal number."""
    began_at: int | None = None
    """The start in microseconds since 1970, UTC."""
    ended_at: int | None = None
    """The end in microseconds since 1970, UTC."""
    job_id: str | None = None
    """The id of the step; None for a function."""


class RerunChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change at one call of a run. Without `payload` and `output` the call is made again as it was; `output` wins."""

    node: str
    """The position of the call in the tree, such as `0.1`."""
    payload: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    """A request body that replaces the one of the step; empty for none."""
    output: str | None = None
    """A result that replaces the one of the call, which is not made again; None for none."""


async def run_log(services: Services, caller: Caller, job_id: str) -> list[LoggedCall]:
    """Return the log of every call, in the order of the pipeline's text.

    Callers who may not review see no values of a run that may be held, until it is signed off.
    Raises JobNotFound, and BadRequest for a job that is not a run or whose pipeline was removed.
    """
    run = await _load_run(services, caller, job_id)
    may_see_values = await may_see_steps(services, caller, run)
    steps, calls = await _last_round(services, run)
    entries = {step.node or "": _entry_of_step(redacted(caller, step)) for step in steps}
    entries |= {call.node: _entry_of_call(call) for call in calls}
    tree = await _load_calls(services, run)
    listed = [entries.get(node) or LoggedCall(node=node, name=call.name) for node, call in tree.items()]
    return listed if may_see_values else [_without_values(entry) for entry in listed]


async def costs_of_runs(services: Services, caller: Caller, runs: Sequence[Job]) -> dict[str, UsageTotals]:
    """Return the tokens and the cost of all steps of each run that `caller` may see, by its id; none without steps.

    A run that has not ended has none either, as its steps may be held.
    """
    visible = [run.id for run in runs if run.is_terminal and (may_review(caller) or run.user_id == caller.user_id)]
    return await services.store.runs.costs(visible)


async def rerun(services: Services, caller: Caller, job_id: str, change: RerunChange) -> Job:
    """Store a new run that repeats `change.node` and the calls that depend on it, and return it.

    The other calls keep their results. Raises JobNotFound, BadRequest, Forbidden, BacklogFull, and Stale if the run
    has not ended.
    """
    run = await _load_run(services, caller, job_id)
    if caller.role != "admin" and caller.user_id != run.user_id:
        raise Forbidden("Only the owner of a run or an admin may run it again.")
    if not run.is_terminal:
        raise Stale(f"The run is {run.status}; rerun it when it has ended.", job_id=job_id)
    if change.node not in await _load_calls(services, run):
        raise BadRequest(f"`node` must be the position of a call, such as 0.1 (got {change.node!r}).")
    new = await copy_for_retry(services, caller, run)
    stale = {change.node, *ancestors(change.node)}
    old_steps, old_calls = await _last_round(services, run)
    steps, calls = {step.node: step for step in old_steps}, {call.node: call for call in old_calls}
    copied_steps = [
        _copy_step(services, new, step)
        for node, step in steps.items()
        if step.status == "success" and node not in stale
    ]
    copied_calls = [_copy_call(new, call) for node, call in calls.items() if call.error is None and node not in stale]
    if bytes(change.payload) or change.output is not None:
        step, call = steps.get(change.node), calls.get(change.node)
        copied_steps += [] if step is None else [await _change_step(services, caller, new, step, change)]
        copied_calls += [_change_call(new, call, change)] if call is not None else []
        if step is None and call is None:
            raise BadRequest(f"The call at `node` {change.node!r} was not made; leave out `payload` and `output`.")
    size_bytes = sum(len(each.body) + len(each.response or b"") for each in (new, *copied_steps))
    with await services.runtime.backlogs.reserve(new.user_id, size_bytes):
        job = await services.store.runs.insert_retry(new, copied_steps, copied_calls, actor=caller.actor)
    services.adapters.broker.notify(job.id, job.priority)
    return redacted(caller, job)


async def _load_run(services: Services, caller: Caller, job_id: str) -> Job:
    job = await get_job(services, caller, job_id)
    if job.pipeline_id is None:
        raise BadRequest(f"The job {job_id} is not a run of a pipeline.")
    return job


async def _load_calls(services: Services, run: Job) -> dict[str, Call]:
    """Return the calls of the version that ran, by node. Raises BadRequest if it was removed."""
    try:
        return calls_by_node((await pipeline_of(services, run)).tree)
    except LibraryItemNotFound as error:
        raise BadRequest(error.message) from None


async def _last_round(services: Services, run: Job) -> tuple[Sequence[Job], Sequence[FunctionCall]]:
    """Return the steps and function calls of one round: the current one while the run is in progress, else the last.

    A round is one pass through the pipeline. A run that is held or has ended has the number of the next round.
    """
    steps, calls = await services.store.runs.steps(run.id), await services.store.runs.calls(run.id)
    rounds = {step.parent_round or 0 for step in steps} | {call.round for call in calls}
    last = run.round if run.status == "bot" else max(rounds, default=0)
    return [step for step in steps if step.parent_round == last], [call for call in calls if call.round == last]


def _entry_of_step(step: Job) -> LoggedCall:
    call = msgspec.json.decode(step.metadata, type=StepCall)
    return LoggedCall(
        node=step.node or "",
        name=call.name,
        state=STATES[step.status],
        kind=call.kind,
        version=call.version,
        arguments=call.arguments,
        output=None if step.response is None else text_or_json(step.response),
        error=step.error,
        usage=None if step.usage is None else msgspec.to_builtins(step.usage),
        cost=None if step.cost_nanodollars is None else dollars(step.cost_nanodollars, NANO),
        began_at=step.created_at,
        ended_at=step.updated_at if step.is_terminal else None,
        job_id=step.id,
    )


def _entry_of_call(call: FunctionCall) -> LoggedCall:
    return LoggedCall(
        node=call.node,
        name=call.name,
        state="failed" if call.error else "done",
        kind="function",
        arguments=msgspec.json.decode(call.arguments),
        output=None if call.output is None else msgspec.json.decode(call.output),
        error=call.error,
        began_at=call.began_at,
        ended_at=call.ended_at,
    )


def _without_values(entry: LoggedCall) -> LoggedCall:
    return msgspec.structs.replace(entry, arguments=None, output=None, error=None, usage=None, cost=None)


def _copy_step(services: Services, run: Job, step: Job) -> Job:
    """Return a step of the new run with the answer of `step`, whose usage was counted already."""
    fields: dict[str, Any] = dict.fromkeys(_CALL_FIELDS)
    fields |= dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"), 0)
    fields |= {"id": services.ids.new_id(), "parent_id": run.id, "parent_round": run.round, "retry_of": step.id}
    fields |= {"lane": run.lane, "token_id": run.token_id, "attempt": 0, "round": 0, "seq": 1}
    return msgspec.structs.replace(step, **fields)


async def _change_step(services: Services, caller: Caller, run: Job, step: Job, change: RerunChange) -> Job:
    """Return the step of the new run with the change. Raises Forbidden, and what `admit` raises for its payload."""
    new = _copy_step(services, run, step)
    if change.output is not None:
        if not may_review(caller) and await _may_be_held(services, step):
            raise Forbidden("The call at `node` is under review, so only a reviewer may set its `output`.")
        return msgspec.structs.replace(new, status="success", response=msgspec.json.encode(change.output), error=None)
    body = bytes(change.payload)
    if step.pipeline_id is not None:
        return msgspec.structs.replace(new, status="bot", body=body, response=None, error=None)
    admitted = await admit_edited(services, step, caller, body)
    return msgspec.structs.replace(
        new,
        status="bot",
        target=admitted.target,
        model=admitted.model,
        path=admitted.path,
        body=body,
        policy=stricter(step.policy, admitted.policy),
        response=None,
        error=None,
    )


async def _may_be_held(services: Services, step: Job) -> bool:
    """Return True if a step or one below it is under review, by its policy or by the one that applies now."""
    if step.policy.may_hold:
        return True
    if step.pipeline_id is None:
        return (await tighten_policy(services, step)).policy.may_hold
    below = await services.store.runs.steps(step.id)
    return any([await _may_be_held(services, each) for each in below])


def _copy_call(run: Job, call: FunctionCall) -> FunctionCall:
    return msgspec.structs.replace(call, job_id=run.id, round=run.round)


def _change_call(run: Job, call: FunctionCall, change: RerunChange) -> FunctionCall:
    if change.output is None:
        raise BadRequest(f"{call.name!r} is a function; send `output`, not `payload`.")
    return msgspec.structs.replace(_copy_call(run, call), output=msgspec.json.encode(change.output), error=None)
