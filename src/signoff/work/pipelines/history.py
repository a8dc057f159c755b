"""Runs: a run as its log tells of it, call by call; and a part of it run again, with the rest as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from signoff.core.access import Caller
from signoff.core.answer import text_or_json
from signoff.core.job import FunctionCall, Job, JobError, StepCall
from signoff.core.pipelines.nodes import ancestors, calls_by_node
from signoff.core.pipelines.tree import Call
from signoff.core.price import NANO, dollars
from signoff.errors import BadRequest, Forbidden, LibraryItemNotFound, Stale
from signoff.work.jobs.query import get_job, may_see_steps, redacted
from signoff.work.jobs.retry import copy_for_retry
from signoff.work.pipelines.run import pipeline_of
from signoff.work.services import Services

State = Literal["waiting", "running", "held", "done", "failed"]
STATES: dict[str, State] = {"bot": "running", "human": "held", "success": "done", "fail": "failed"}


# What a copy of a step has not: it was not asked.
_OF_ITS_ASKING = (
    "usage",
    "cost_nanodollars",
    "queued_us",
    "ttft_us",
    "generation_us",
    "decision",
    "cache",
    "cache_key",
)


class LoggedCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a run. Times are microseconds since 1970; what has not happened, or may not be seen, is None."""

    node: str
    name: str
    state: State = "waiting"
    kind: str | None = None
    version: int | None = None
    arguments: Mapping[str, Any] | None = None
    output: str | None = None
    error: JobError | None = None
    usage: Mapping[str, Any] | None = None
    cost: str | None = None
    began_at: int | None = None
    ended_at: int | None = None
    job_id: str | None = None


class RerunChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be otherwise at a node: what is asked there, or at once what came of it; else it is asked anew."""

    node: str
    payload: msgspec.Raw = msgspec.Raw(b"")
    output: str | None = None


async def run_log(services: Services, caller: Caller, job_id: str) -> list[LoggedCall]:
    """Every call, in the order of the text. Raises JobNotFound, BadRequest for a job that is no run.

    Callers who may not review see no values of a run that may be held, until it is signed off.
    """
    run = await _run(services, caller, job_id)
    shows = await may_see_steps(services, caller, run)
    steps, calls = await _made(services, run)
    entries = {step.node or "": _entry_of_step(redacted(caller, step)) for step in steps}
    entries |= {call.node: _entry_of_call(call) for call in calls}
    tree = await _tree(services, run)
    listed = [entries.get(node) or LoggedCall(node=node, name=call.name) for node, call in tree.items()]
    return listed if shows else [_bare(entry) for entry in listed]


async def rerun(services: Services, caller: Caller, job_id: str, change: RerunChange) -> Job:
    """A new run, durable, which asks again at `change.node` and whatever needs that, and has the rest already.

    Raises JobNotFound, BadRequest, Forbidden, Stale while the run goes on.
    """
    run = await _run(services, caller, job_id)
    if caller.role != "admin" and caller.user_id != run.user_id:
        raise Forbidden("Only its owner or an admin can run it again.")
    if not run.is_terminal:
        raise Stale(f"The run is {run.status}; a part of it can be run again when it has ended.", job_id=job_id)
    if change.node not in await _tree(services, run):
        raise BadRequest(f"There is no call at {change.node!r}.")
    new = copy_for_retry(services, caller, run)
    stale = {change.node, *ancestors(change.node)}
    made = await _made(services, run)
    steps, calls = {step.node: step for step in made[0]}, {call.node: call for call in made[1]}
    kept = [
        _copy(services, new, step) for node, step in steps.items() if step.status == "success" and node not in stale
    ]
    same = [_same(new, call) for node, call in calls.items() if call.error is None and node not in stale]
    if bytes(change.payload) or change.output is not None:
        step, call = steps.get(change.node), calls.get(change.node)
        kept += [_changed(services, new, step, change)] if step is not None else []
        same += [_changed_call(new, call, change)] if call is not None else []
        if step is None and call is None:
            raise BadRequest(f"The call at {change.node!r} was not made; there is nothing to change.")
    job = await services.store.runs.insert_again(new, kept, same, actor=caller.actor)
    services.adapters.broker.notify(job.id, job.priority)
    return redacted(caller, job)


async def _run(services: Services, caller: Caller, job_id: str) -> Job:
    job = await get_job(services, caller, job_id)
    if job.pipeline_id is None:
        raise BadRequest("This job is no run of a pipeline.")
    return job


async def _tree(services: Services, run: Job) -> dict[str, Call]:
    """The calls of the version that ran. Raises BadRequest once that was deleted."""
    try:
        return calls_by_node((await pipeline_of(services, run)).tree)
    except LibraryItemNotFound as error:
        raise BadRequest(error.message) from None


async def _made(services: Services, run: Job) -> tuple[Sequence[Job], Sequence[FunctionCall]]:
    """The steps and the calls of the round that the run is in; once it has an answer, of the one that gave it."""
    steps, calls = await services.store.runs.steps(run.id), await services.store.runs.calls(run.id)
    rounds = {step.parent_round or 0 for step in steps} | {call.round for call in calls}
    last = run.round if run.status == "bot" else max(rounds, default=0)
    return [step for step in steps if step.parent_round == last], [call for call in calls if call.round == last]


def _entry_of_step(step: Job) -> LoggedCall:
    asked = msgspec.json.decode(step.metadata, type=StepCall)
    return LoggedCall(
        node=step.node or "",
        name=asked.name,
        state=STATES[step.status],
        kind=asked.kind,
        version=asked.version,
        arguments=asked.arguments,
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


def _bare(entry: LoggedCall) -> LoggedCall:
    return msgspec.structs.replace(entry, arguments=None, output=None, error=None, usage=None, cost=None)


def _copy(services: Services, run: Job, step: Job) -> Job:
    """A step of the new run that has its answer already. What it took was counted once."""
    fresh: dict[str, Any] = dict.fromkeys(_OF_ITS_ASKING)
    fresh |= dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"), 0)
    fresh |= {"id": services.ids.new_id(), "parent_id": run.id, "parent_round": run.round, "retry_of": step.id}
    fresh |= {"lane": run.lane, "token_id": run.token_id, "attempt": 0, "round": 0, "seq": 1}
    return msgspec.structs.replace(step, **fresh)


def _changed(services: Services, run: Job, step: Job, change: RerunChange) -> Job:
    new = _copy(services, run, step)
    if change.output is not None:
        return msgspec.structs.replace(new, status="success", response=msgspec.json.encode(change.output), error=None)
    return msgspec.structs.replace(new, status="bot", body=bytes(change.payload), response=None, error=None)


def _same(run: Job, call: FunctionCall) -> FunctionCall:
    return msgspec.structs.replace(call, job_id=run.id, round=run.round)


def _changed_call(run: Job, call: FunctionCall, change: RerunChange) -> FunctionCall:
    if change.output is None:
        raise BadRequest(f"{call.name!r} is a function: change its output.")
    return msgspec.structs.replace(_same(run, call), output=msgspec.json.encode(change.output), error=None)
