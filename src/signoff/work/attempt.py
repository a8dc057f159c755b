"""The path of every job, in both lanes.

Its steps: reserve, ask the model, count the usage, revalidate, judge, settle, release, cache.
The lanes differ in their recorder, which writes down what came of the attempt, and in the attempt's sink.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import msgspec
import structlog

from signoff.core import sse
from signoff.core.api_paths import KNOWN, parse_route
from signoff.core.dialects.answer import Answer, as_binary, collect, has_a_known_shape, parse_answer, unwritten_answer
from signoff.core.job import Job
from signoff.core.retry import wait_seconds
from signoff.core.tokens import Usage
from signoff.core.upstream_objects import created_object_id, is_creation, is_stateless
from signoff.errors import ModelBusy, ModelCrashed, ModelDown, ModelFailed, SignoffError
from signoff.infra.logging import JOB_ID
from signoff.runtime.attempt import Attempt
from signoff.work.inference.caching import revalidate, store_answer
from signoff.work.inference.metering import count_usage, record_wasted, usage_columns
from signoff.work.inference.ownership import check_not_held, tighten_policy
from signoff.work.inference.reserve import release_reservation, reserve
from signoff.work.inference.routing import ask_model
from signoff.work.pipelines.run import RunParked, run_pipeline
from signoff.work.reviews.judge import judge
from signoff.work.reviews.policies import check_not_rejected
from signoff.work.services import Perform, Services

# A waiting caller gets the error at once if the model asks for a longer wait before the next try.
MAX_RETRY_WAIT_SECONDS = 5.0
log = structlog.get_logger()


class Recorder(Protocol):
    """Record of what came of an attempt, in the way of one lane."""

    async def settle(self, outcome: Answer | SignoffError) -> Job | None:
        """Record the outcome, and return the job; None if the lease was lost meanwhile."""
        ...

    async def cut_off(self) -> None:
        """Record that the attempt was cancelled: its caller left, or the process stops."""
        ...


async def run_attempt(services: Services, attempt: Attempt, recorder: Recorder, perform: Perform) -> Job | None:
    """Answer the job of `attempt`, and return the settled job; None if another process has the job now.

    The outcome is in `attempt.outcome`, also if it is an error. When cancelled, record that, unless the lease was lost.
    Raises what the recorder raises if the outcome cannot be recorded.

    Args:
        services: The dependencies.
        attempt: The attempt, whose job is leased or not stored yet.
        recorder: The recorder of the job's lane.
        perform: How to perform a leased step, if the job is a run of a pipeline.
    """
    attempt.set_task(asyncio.current_task())
    metrics, outer_job_id, settled = services.runtime.metrics, JOB_ID.get(), None
    figures = metrics.attempt_began(attempt)
    JOB_ID.set(attempt.job.id)
    try:
        attempt.outcome = await _outcome(services, attempt, perform)
        await _weigh_outcome(services, attempt, perform)
        settled = await recorder.settle(attempt.outcome)
    except RunParked as parked:
        services.runtime.leases.drop(attempt.job.id)
        attempt.job, attempt.is_parked = parked.job, True
        return parked.job
    except asyncio.CancelledError:
        if not attempt.is_lost:
            attempt.is_cut_off = True
            await recorder.cut_off()
            raise
        asyncio.current_task().uncancel()  # pyright: ignore[reportOptionalMemberAccess] -- cancelled by `on_lease_lost`
    finally:
        attempt.set_task(None)
        try:
            if not attempt.is_counted:
                await count_usage(services, attempt)
        finally:
            if attempt.reservation is not None:
                await release_reservation(services, attempt)
            JOB_ID.set(outer_job_id)
            metrics.attempt_ended(attempt, figures, settled)
    if settled is None:
        log.info("job_lease_lost", job_id=attempt.job.id)
        record_wasted(services, attempt)
        return None
    store_answer(services, settled, is_whole=settled.response is attempt.body)
    return settled


async def _outcome(services: Services, attempt: Attempt, perform: Perform) -> Answer | SignoffError:
    """Return the answer or the error of the job's model or pipeline. Raises RunParked."""
    try:
        if not attempt.job.is_waiting_call:
            attempt.job = await tighten_policy(services, attempt.job)
        check_not_rejected(attempt.job)
        await reserve(services, attempt)
        await _ask(services, attempt, perform)
        if not is_stateless(attempt.job.path):
            await check_not_held(services, attempt.job)
        if attempt.awaits_person:
            return unwritten_answer(attempt.job.body)
        return _answer_of_attempt(attempt)
    except RunParked:
        raise
    except Exception as error:  # noqa: BLE001 -- any error must settle the job
        failure = to_caller_error(error, attempt.job)
        # Its frames hold parts of the answer and, as the outcome of the attempt, would refer to themselves.
        failure.__traceback__ = failure.__cause__ = failure.__context__ = None
        return failure


async def _weigh_outcome(services: Services, attempt: Attempt, perform: Perform) -> None:
    """Count the usage, revalidate, and judge the answer."""
    try:
        await count_usage(services, attempt)
        attempt.job = await revalidate(services, attempt.job)
        if not attempt.awaits_person:  # nobody can judge an answer that is not written yet
            await judge(services, attempt, perform, partial(_ask_other, services, attempt))
    except Exception as error:  # noqa: BLE001 -- any error must settle the job
        attempt.outcome = to_caller_error(error, attempt.job)


async def _ask(services: Services, attempt: Attempt, perform: Perform) -> None:
    """Ask the model, or run the pipeline, whose steps have the usage; the attempt gets the answer.

    For a waiting client, try again after a failure before the first byte, if that may help.
    """
    while True:
        try:
            if attempt.job.pipeline_id is None:
                attempt.start()
                await ask_model(services, attempt)
            else:
                attempt.take((await run_pipeline(services, attempt.job, perform)).body)
        except SignoffError as error:
            await _wait_before_retry(services, attempt, error)
        else:
            return


async def _ask_other(services: Services, attempt: Attempt, name: str) -> bool:
    """Ask the model `name` as well; if it answers, its answer replaces that of `attempt`. Its usage counts anyway.

    It has a reservation of its own, as other limits may apply to it. That of the first model is settled before, because
    its call has ended.
    """
    job = attempt.job
    if attempt.reservation is not None:
        await release_reservation(services, attempt)
    other = Attempt(msgspec.structs.replace(job, target=name, model=name, key_id=None), stream=False)
    other.arrived_at = asyncio.get_running_loop().time()
    try:
        try:
            await reserve(services, other, request_id=f"{job.id}.{job.round}.{job.attempt}.{name}")
            other.start()
            await ask_model(services, other)
            other.outcome = _answer_of_attempt(other)
        except Exception as error:  # noqa: BLE001 -- the first answer stays, and a person looks at it
            log.warning("policy_model_failed", job_id=job.id, model=name, error=repr(error))
        await count_usage(services, other)
    finally:
        await release_reservation(services, other)
    counted = {column: getattr(other.job, column) for column in usage_columns(other.job)}
    if other.outcome is None:
        attempt.job = msgspec.structs.replace(job, **counted)
        return False
    attempt.job = msgspec.structs.replace(job, model=other.job.model, cache="bypass", **counted)
    attempt.outcome, attempt.body, attempt.events = other.outcome, other.body, other.events
    attempt.wants_logprobs = other.wants_logprobs
    return True


async def _wait_before_retry(services: Services, attempt: Attempt, error: SignoffError) -> None:
    """Wait until the next try, and count it. Raises `error` if it goes to the caller or a worker tries again later.

    A waiting caller gets the error at once if the wait would be long, the queue is full, or the process crashed.
    """
    job = attempt.job
    is_final = isinstance(error, ModelCrashed | ModelBusy) or (isinstance(error, ModelDown) and error.is_final)
    if not job.is_waiting_call or attempt.has_begun or not error.retryable or is_final:
        raise error
    seconds = wait_seconds(services.rules.backoff, job.attempt, services.ids.random_float(), error.retry_after_seconds)
    if job.attempt >= job.max_attempts or seconds > MAX_RETRY_WAIT_SECONDS:
        raise error
    await asyncio.sleep(seconds)
    attempt.job = msgspec.structs.replace(job, attempt=job.attempt + 1)


def _answer_of_attempt(attempt: Attempt) -> Answer:
    """Return the answer that came, with log-probabilities that its body has not. Raises ModelGarbled."""
    answer, logprobs = answer_of(attempt.job, attempt.body, attempt.events), attempt.translated_logprobs
    return msgspec.structs.replace(answer, logprobs=tuple(logprobs)) if logprobs else answer


def answer_of(job: Job, body: bytes | None, events: Sequence[bytes]) -> Answer:
    """Return the answer to `job` that came as one body or as events, with the id of the object that it created.

    A request for an object that exists already has no usage. Raises ModelGarbled.
    """
    path = job.path
    if body is not None:
        answer = parse_answer(body)
        bodies = [answer.body]
    elif path in KNOWN or parse_route(path) is None or has_a_known_shape(events):
        answer = collect(events, job.body)
        bodies = [answer.body]
    else:
        answer = as_binary(events, job.body)
        bodies = [sse.data_of(event) for event in reversed(events)]
    if is_stateless(path):
        return answer
    if not is_creation(path):
        return msgspec.structs.replace(answer, usage=Usage())
    object_id = next((name for body in bodies if (name := created_object_id(path, body))), None)
    return msgspec.structs.replace(answer, upstream_object_id=object_id)


def to_caller_error(error: Exception, job: Job) -> SignoffError:
    """Return `error` as an error that a caller may see; log it if it is a fault of this server."""
    if isinstance(error, SignoffError):
        return error
    log.error("model_call_failed", job_id=job.id, exc_info=error)
    return ModelFailed("The model could not be called because of a fault in this server; see the server's log.")
