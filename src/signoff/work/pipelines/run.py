"""Pipeline: a run goes through its calls, independent ones at the same time, each answered once whatever breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from signoff.core.access import Caller, lower_role
from signoff.core.answer import Answer, text_or_json
from signoff.core.convert import convert_answer
from signoff.core.job import FunctionCall, Job
from signoff.core.pipelines.arguments import parse_arguments
from signoff.core.pipelines.check import Callee, bind_arguments, check_calls, parameter_names
from signoff.core.pipelines.coerce import to_text
from signoff.core.pipelines.composed import Pipeline, Prompt
from signoff.core.pipelines.function import Function
from signoff.core.pipelines.nodes import ROOT, calls_by_node
from signoff.core.pipelines.tree import Call, Given, Name
from signoff.errors import FunctionFailed, LibraryItemNotFound, SignoffError, Stale
from signoff.store import TransitionRequest
from signoff.work.inference.resolve import may_use_item
from signoff.work.inference.settle import job_error
from signoff.work.jobs.query import load_job
from signoff.work.pipelines.functions import call_function
from signoff.work.pipelines.library import callees_of
from signoff.work.pipelines.step import Performs, PlacedCall, await_step, new_step
from signoff.work.services import Services

AT_ONCE = 64
STOP_SECONDS = 5.0
Values = Mapping[str, str]
Outcome = str | SignoffError | None


class RunParked(Exception):
    """The run waits for a step, and nothing more can be done for it now. Its lease is given back."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        self.job = job


async def run_pipeline(services: Services, job: Job, ask: Performs) -> Answer:
    """What the pipeline of `job`, which is leased, gives in the end. `ask` performs a step.

    Raises Parked; StepFailed, FunctionFailed; ComposedNotFound, BadRequest where it cannot be run any more; Stale.
    """
    pipeline = await pipeline_of(services, job)
    caller = await _caller_of(services, job)
    callees = await callees_of(
        services, pipeline.tree, lambda composed: may_use_item(caller, composed), name=pipeline.name
    )
    check_calls(pipeline.body, pipeline.tree, (callees | {pipeline.name: pipeline}).get, own_name=pipeline.name)
    values = parse_arguments(job.body, parameter_names(pipeline))
    plan = _Plan(tree=pipeline.tree, callees=callees, values=values, caller=caller)
    while True:
        going = _Run(services, job, plan, ask)
        text = await going.result()
        if text is not None:
            return Answer(body=convert_answer(job.path, msgspec.json.encode(text), job.target))
        parked = await _park(services, job, going.settled_steps)
        if parked is not None:
            raise RunParked(parked)


async def pipeline_of(services: Services, job: Job) -> Pipeline:
    """The version that `job` began with. Raises ComposedNotFound once it was deleted."""
    found = await services.caches.library.find(job.pipeline_id or 0, job.pipeline_version or 0)
    if not isinstance(found, Pipeline):
        raise LibraryItemNotFound(f"The pipeline {job.target!r} is gone.")
    return found


async def _caller_of(services: Services, run: Job) -> Caller:
    """Whoever asked for the run, as whom it calls what it calls; with no more rights than the token had."""
    user, token = await services.store.people.owner(run.user_id, run.token_id)
    told: dict[str, Any] = {"user_id": run.user_id, "token_id": run.token_id}
    if user is None:
        return Caller(**told, role="user", email="nobody")
    if token is None:
        return Caller(**told, role=user.role, email=user.email)
    return Caller(**told, role=lower_role(token.role, user.role), email=user.email, cache=token.cache)


async def _park(services: Services, job: Job, settled: int) -> Job | None:
    """The parked job; None where a step has settled meanwhile. Raises Stale when the run is somebody else's by now."""
    step = TransitionRequest(
        verb="park",
        actor=services.ids.actor,
        lease=job.lease,
        settled_steps=settled,
        changes={"lane": "later"},
        after_seconds={"parked_at": 0},
    )
    try:
        return await services.store.jobs.transition(job.id, step)
    except Stale:
        if (await load_job(services, job.id)).lease != job.lease:
            raise
        return None


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run: for whom each call is made, what it calls, and what the run was given."""

    tree: Call
    callees: Mapping[str, Callee]
    values: Values
    caller: Caller


class _Run:
    """One way through the tree, as far as it goes. `settled` is how many of its steps are known to have ended."""

    def __init__(self, services: Services, job: Job, plan: _Plan, ask: Performs) -> None:
        self._services = services
        self._job = job
        self._plan = plan
        self._ask = ask
        self._nodes = calls_by_node(plan.tree)
        self._given = dict[str, str]()
        self._steps = dict[str, Job]()
        self._calls = dict[str, FunctionCall]()
        self._running = dict[asyncio.Task[Outcome], str]()
        self._is_left = False

    @property
    def settled_steps(self) -> int:
        """How many of the steps have ended, as far as this run has seen."""
        return sum(step.is_terminal for step in self._steps.values())

    async def result(self) -> str | None:
        """What the outermost call gives; None while steps that wait are in its way. Raises what went wrong first.

        Then calls that still run are cancelled with the run, as soon as its end is written.
        """
        services, job = self._services, self._job
        self._steps = {step.node or "": step for step in await services.store.runs.steps(job.id, job.round)}
        self._calls = {call.node: call for call in await services.store.runs.calls(job.id, job.round)}
        waiting = {node: sum(isinstance(arg.value, Call) for arg in call.args) for node, call in self._nodes.items()}
        ready = [node for node, missing in waiting.items() if not missing]
        try:
            while ready or self._running:
                while ready and len(self._running) < AT_ONCE:
                    node = ready.pop(0)
                    self._running[services.runtime.background.spawn(self._outcome(node))] = node
                for node, outcome in await self._next():
                    if isinstance(outcome, SignoffError):
                        raise outcome
                    if outcome is not None:
                        self._given[node] = outcome
                        above = node.rpartition(".")[0]
                        waiting[above] = waiting.get(above, 0) - 1
                        ready += [above] if waiting[above] == 0 and above else []
        except asyncio.CancelledError:
            await self._stop()
            raise
        return self._given.get(ROOT)

    async def _next(self) -> list[tuple[str, Outcome]]:
        done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        return [(self._running.pop(task), task.result()) for task in done]

    async def _stop(self) -> None:
        """Whoever runs this is stopping, or has lost it. A waiting caller's steps are not given to anybody else."""
        self._is_left = True
        for task, node in self._running.items():
            step = self._steps.get(node)
            if self._job.lane == "later" or step is None or not self._services.runtime.leases.mark_lost(step.id):
                task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_SECONDS)

    async def _outcome(self, node: str) -> Outcome:
        """What one call gives; None while it waits. Whatever goes wrong is an outcome too."""
        call = self._nodes[node]
        try:
            callee = self._plan.callees[call.name]
            values = {name: self._value(node, call, value) for name, value in bind_arguments(call, callee).items()}
            if isinstance(callee, Function):
                return await self._called(node, callee, values)
            return await self._asked(node, callee, values)
        except SignoffError as error:
            return error

    def _value(self, node: str, call: Call, value: Call | Name | Given) -> str:
        match value:
            case Given():
                return to_text(value.value)
            case Name():
                return self._plan.values[value.name]
            case Call():
                index = next(index for index, arg in enumerate(call.args) if arg.value is value)
                return self._given[f"{node}.{index}"]

    async def _called(self, node: str, function: Function, values: Values) -> str:
        """A function's result: the one that is kept, else a new one, which is kept before anything goes on."""
        call = self._calls.get(node) or await self._kept(node, function, values)
        if call.error is not None:
            failure = FunctionFailed(call.error.message)
            failure.status, failure.code = call.error.status, call.error.code
            raise failure
        return msgspec.json.decode(call.output or b'""', type=str)

    async def _kept(self, node: str, function: Function, values: Values) -> FunctionCall:
        services, job = self._services, self._job
        output, error, began_at = None, None, services.clock()
        try:
            text = await call_function(services, self._plan.caller, function, values)
            output = msgspec.json.encode(text)
        except FunctionFailed as failure:
            error = job_error(failure)
        call = FunctionCall(
            job_id=job.id,
            round=job.round,
            node=node,
            name=function.name,
            arguments=msgspec.json.encode(values),
            output=output,
            error=error,
            began_at=began_at,
            ended_at=services.clock(),
        )
        return await services.store.runs.add_call(call, run_lease=job.lease or "")

    async def _asked(self, node: str, callee: Prompt | Pipeline, values: Values) -> str | None:
        """The words of a step's answer; None while it waits, for a person or for its time. Raises StepFailed."""
        services, job = self._services, self._job
        if node not in self._steps:
            made = await new_step(services, job, self._plan.caller, PlacedCall(node, callee, values))
            self._steps[node] = await services.store.runs.add_step(
                made, actor=services.ids.actor, run_lease=job.lease or "", lease_seconds=services.rules.lease_seconds
            )
            if self._steps[node].id == made.id and not made.is_terminal:
                await self._perform(services, self._steps[node])
        self._steps[node] = await await_step(services, self._steps[node], self._perform)
        if self._steps[node].is_terminal:
            return text_or_json(self._steps[node].response)
        return None

    async def _perform(self, services: Services, step: Job) -> None:
        """Raises Stale where it came back because nobody waits for the run any more."""
        await self._ask(services, step)
        if self._is_left:
            raise Stale("Its caller has left.", job_id=step.id)
