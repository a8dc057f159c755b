"""Pipelines: run the tree of calls, independent calls at the same time.

The result of each call is stored before another call uses it, so a run that was interrupted goes on where it stopped.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from signoff.core.access import Caller, lower_role
from signoff.core.dialects.answer import Answer, text_or_json
from signoff.core.dialects.convert import convert_answer
from signoff.core.job import FunctionCall, Job
from signoff.core.pipelines.arguments import parse_arguments
from signoff.core.pipelines.check import Callee, bind_arguments, check_calls, parameter_names
from signoff.core.pipelines.coerce import to_text
from signoff.core.pipelines.composed import Pipeline, Prompt
from signoff.core.pipelines.function import Function
from signoff.core.pipelines.nodes import ROOT, calls_by_node
from signoff.core.pipelines.template import rendered_bytes
from signoff.core.pipelines.tree import Call, Constant, Name
from signoff.errors import FunctionFailed, LibraryItemNotFound, SignoffError, Stale
from signoff.runtime.run_sizes import RunSize
from signoff.store import TransitionRequest
from signoff.work.inference.resolve import may_use_item
from signoff.work.inference.settle import job_error
from signoff.work.jobs.query import load_job
from signoff.work.pipelines.functions import call_function
from signoff.work.pipelines.library import callees_of
from signoff.work.pipelines.step import NodeCall, await_step, new_step
from signoff.work.services import Perform, Services

MAX_PARALLEL_CALLS = 64
STOP_SECONDS = 5.0
Values = Mapping[str, str]
Outcome = str | SignoffError | None


class RunParked(Exception):
    """A run that waits for a step, and cannot go on now. Its lease has been released; `job` is the parked run."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        self.job = job


async def run_pipeline(services: Services, job: Job, perform: Perform) -> Answer:
    """Run the pipeline of `job`, and return its answer. `job` is leased, and `perform` performs one leased step.

    Raises:
        RunParked: the run waits for a step.
        StepFailed: a step has failed.
        FunctionFailed: a function has failed.
        RunTooLarge: the requests and answers of the calls are too large together.
        LibraryItemNotFound: the pipeline was removed.
        BadRequest: the pipeline or its arguments are not valid any more.
        Stale: the lease was lost.
    """
    pipeline = await pipeline_of(services, job)
    caller = await _caller_of(services, job)
    callees = await callees_of(services, pipeline.tree, lambda item: may_use_item(caller, item), name=pipeline.name)
    check_calls(pipeline.body, pipeline.tree, (callees | {pipeline.name: pipeline}).get, own_name=pipeline.name)
    values = parse_arguments(job.body, parameter_names(pipeline))
    plan = _Plan(tree=pipeline.tree, callees=callees, values=values, caller=caller)
    while True:
        async with services.runtime.run_sizes.counting(job, services.store.runs.size_bytes) as size:
            run = _Run(services, job, plan, perform, size)
            text = await run.result()
        if text is not None:
            body, created = msgspec.json.encode(text), job.created_at // 1_000_000
            return Answer(body=convert_answer(job.path, body, job.target, created=created))
        parked = await _park(services, job, run.settled_steps)
        if parked is not None:
            raise RunParked(parked)


async def pipeline_of(services: Services, job: Job) -> Pipeline:
    """Return the version of the pipeline that `job` started with. Raises LibraryItemNotFound if it was removed."""
    item = await services.caches.library.find(job.pipeline_id or 0, job.pipeline_version or 0)
    if not isinstance(item, Pipeline):
        raise LibraryItemNotFound(f"The pipeline {job.target!r} was removed.")
    return item


async def _caller_of(services: Services, run: Job) -> Caller:
    """Return the caller who started the run, with no more rights than the token has now."""
    user, token = await services.store.people.user_with_token(run.user_id, run.token_id)
    ids: dict[str, Any] = {"user_id": run.user_id, "token_id": run.token_id}
    if user is None:
        return Caller(**ids, role="user", email="nobody")
    if token is None:
        return Caller(**ids, role=user.role, email=user.email)
    return Caller(**ids, role=lower_role(token.role, user.role), email=user.email, cache=token.cache)


async def _park(services: Services, job: Job, settled_steps: int) -> Job | None:
    """Park the run, and return it; None if a step has settled meanwhile. Raises Stale if the lease was lost."""
    request = TransitionRequest(
        verb="park",
        actor=services.ids.actor,
        lease=job.lease,
        settled_steps=settled_steps,
        changes={"lane": "later"},
        after_seconds={"parked_at": 0},
    )
    try:
        return await services.store.jobs.transition(job.id, request)
    except Stale:
        if (await load_job(services, job.id)).lease != job.lease:
            raise
        return None


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The input of a run."""

    tree: Call
    """The call whose result is the answer."""
    callees: Mapping[str, Callee]
    """Prompts, pipelines and functions by name."""
    values: Values
    """The arguments of the run."""
    caller: Caller
    """The caller with whose rights each call is made."""


class _Run:
    """A pass through the tree of calls, as far as it can go now."""

    def __init__(self, services: Services, job: Job, plan: _Plan, perform: Perform, size: RunSize) -> None:
        self._services = services
        self._job = job
        self._plan = plan
        self._perform_step = perform
        self._size = size
        self._nodes = calls_by_node(plan.tree)
        self._results = dict[str, str]()
        self._steps = dict[str, Job]()
        self._calls = dict[str, FunctionCall]()
        self._running = dict[asyncio.Task[Outcome], str]()
        self._is_stopped = False

    @property
    def settled_steps(self) -> int:
        """The number of steps that have ended, as far as this pass has seen."""
        return sum(step.is_terminal for step in self._steps.values())

    async def result(self) -> str | None:
        """Return the result of the outermost call; None while it depends on steps that wait.

        Raises the first error of a call. Calls that still run then are cancelled once the end of the run is stored.
        """
        services, job = self._services, self._job
        self._steps = {step.node or "": step for step in await services.store.runs.steps(job.id, job.round)}
        self._calls = {call.node: call for call in await services.store.runs.calls(job.id, job.round)}
        waiting = {node: sum(isinstance(arg.value, Call) for arg in call.args) for node, call in self._nodes.items()}
        ready = [node for node, missing in waiting.items() if not missing]
        try:
            while ready or self._running:
                while ready and len(self._running) < MAX_PARALLEL_CALLS:
                    node = ready.pop(0)
                    self._running[services.runtime.background.spawn(self._call_outcome(node))] = node
                for node, outcome in await self._next():
                    if isinstance(outcome, SignoffError):
                        raise outcome
                    if outcome is not None:
                        self._results[node] = outcome
                        parent = node.rpartition(".")[0]
                        waiting[parent] = waiting.get(parent, 0) - 1
                        ready += [parent] if waiting[parent] == 0 and parent else []
        except asyncio.CancelledError:
            await self._stop()
            raise
        return self._results.get(ROOT)

    async def _next(self) -> list[tuple[str, Outcome]]:
        done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        return [(self._running.pop(task), task.result()) for task in done]

    async def _stop(self) -> None:
        """Stop the calls that run. A waiting caller's steps lose their leases, as no other worker takes them over."""
        self._is_stopped = True
        for task, node in self._running.items():
            step = self._steps.get(node)
            if self._job.lane == "later" or step is None or not self._services.runtime.leases.mark_lost(step.id):
                task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_SECONDS)

    async def _call_outcome(self, node: str) -> Outcome:
        """Return the result of one call, its error, or None while it waits."""
        call = self._nodes[node]
        try:
            callee = self._plan.callees[call.name]
            values = {name: self._value(node, call, value) for name, value in bind_arguments(call, callee).items()}
            if isinstance(callee, Function):
                return await self._function_result(node, callee, values)
            return await self._step_result(node, callee, values)
        except SignoffError as error:
            return error

    def _value(self, node: str, call: Call, value: Call | Name | Constant) -> str:
        match value:
            case Constant():
                return to_text(value.value)
            case Name():
                return self._plan.values[value.name]
            case Call():
                index = next(index for index, arg in enumerate(call.args) if arg.value is value)
                return self._results[f"{node}.{index}"]

    async def _function_result(self, node: str, function: Function, values: Values) -> str:
        """Return the stored result of a function, or call it and store the result first. Raises FunctionFailed."""
        call = self._calls.get(node) or await self._run_function(node, function, values)
        if call.error is not None:
            failure = FunctionFailed(call.error.message)
            failure.status, failure.code = call.error.status, call.error.code
            raise failure
        return msgspec.json.decode(call.output or b'""', type=str)

    async def _run_function(self, node: str, function: Function, values: Values) -> FunctionCall:
        services, job = self._services, self._job
        output, error, began_at = None, None, services.clock()
        try:
            text = await call_function(services, self._plan.caller, function, values)
            output = msgspec.json.encode(text)
        except FunctionFailed as failure:
            error = job_error(failure)
        arguments = msgspec.json.encode(values)
        self._size.add(len(arguments) + len(output or b""))
        call = FunctionCall(
            job_id=job.id,
            round=job.round,
            node=node,
            name=function.name,
            arguments=arguments,
            output=output,
            error=error,
            began_at=began_at,
            ended_at=services.clock(),
        )
        return await services.store.runs.add_call(call, run_lease=job.lease or "")

    async def _step_result(self, node: str, callee: Prompt | Pipeline, values: Values) -> str | None:
        """Return the text of the step's answer; None while the step waits or is postponed. Raises StepFailed."""
        services, job = self._services, self._job
        if node not in self._steps:
            # A prompt counts before it is rendered, because many calls may be rendered at the same time.
            text_bytes = rendered_bytes(callee.body, values) if isinstance(callee, Prompt) else 0
            self._size.add(text_bytes)
            new = await new_step(services, job, self._plan.caller, NodeCall(node, callee, values))
            self._size.add(len(new.body) - text_bytes + len(new.metadata) + len(new.response or b""))
            self._steps[node] = await services.store.runs.add_step(
                new, actor=services.ids.actor, run_lease=job.lease or "", lease_seconds=services.rules.lease_seconds
            )
            if self._steps[node].id == new.id and not new.is_terminal:
                await self._perform(services, self._steps[node])
        before = self._steps[node]
        self._steps[node] = await await_step(services, before, self._perform)
        if self._steps[node].is_terminal:
            if not before.is_terminal:
                self._size.add(len(self._steps[node].response or b""))
            return text_or_json(self._steps[node].response)
        return None

    async def _perform(self, services: Services, step: Job) -> None:
        """Perform a step. Raises Stale if the caller of the run has left meanwhile."""
        await self._perform_step(services, step)
        if self._is_stopped:
            raise Stale("The caller of the run has disconnected; send the request again.", job_id=step.id)
