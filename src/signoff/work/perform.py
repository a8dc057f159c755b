"""Perform: ask the model for a claimed job, and settle it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec
import structlog

from signoff.core import sse
from signoff.core.answer import Answer, Chunk, as_binary, collect, has_a_known_shape
from signoff.core.endpoints import KNOWN, parse_route
from signoff.core.job import Job
from signoff.core.model import has_single_endpoint
from signoff.core.tokens import Usage
from signoff.core.upstream_objects import created_object_id, creates_no_object, creates_object
from signoff.errors import BudgetSpent, LimitReached, ModelFailed, ModelGarbled, Overloaded, SignoffError, Stale
from signoff.runtime.attempt import Attempt
from signoff.store import TransitionRequest
from signoff.work.inference.caching import revalidate, store_answer
from signoff.work.inference.metering import add_attempt, record_wasted, usage_columns
from signoff.work.inference.reserve import release_reservation, reserve
from signoff.work.inference.routing import OnModel, ask_model, route
from signoff.work.inference.settle import settle
from signoff.work.pipelines.run import RunParked, run_pipeline
from signoff.work.services import Services

MAX_ANSWER_BYTES = 64 * 1024 * 1024
# A job that waits for a limit looks again at least so often: it may have been raised.
LONGEST_PUT_OFF_SECONDS = 300.0
AGAIN_SECONDS = 1.0
SPREAD_SECONDS = 30.0
log = structlog.get_logger()


async def perform(services: Services, job: Job) -> None:
    """Asks, and settles. When cancelled, gives the attempt back; when the lease is lost, changes nothing.

    Where a limit leaves no room, the job is due again when there may be some.
    """
    assert job.lease is not None  # noqa: S101 -- a claimed job has one
    lost, task, asking = asyncio.Event(), asyncio.current_task(), Attempt()

    def stop() -> None:
        lost.set()
        if task is not None:
            task.cancel()

    with services.runtime.leases.holding(job.id, job.lease, stop):
        try:
            await _perform_reserved(services, job, asking)
        except RunParked:
            log.debug("the run waits for a person", job=job.id)
        except asyncio.CancelledError:
            if not lost.is_set():
                await _release_job(services, job, asking)
                raise
            record_wasted(services, job, asking)
            if task is not None:
                task.uncancel()
            log.info("the lease was lost; whoever took the job settles it", job=job.id)


async def _perform_reserved(services: Services, job: Job, asking: Attempt) -> None:
    """The same once there is room under the job's limits; until then it is put off, unless somebody would wait for a
    day to end. A run has its steps wait.
    """
    try:
        reservation = None if job.pipeline_id is not None else await reserve(services, job)
    except LimitReached as full:
        if full.retry_after_seconds is None or (job.lane == "now" and isinstance(full, BudgetSpent)):
            await _settle(services, job, full)
        else:
            await _postpone(services, job, full.retry_after_seconds)
        return
    except Overloaded:
        await _postpone(services, job, AGAIN_SECONDS)
        return
    took = None
    try:
        named, outcome = await _outcome(services, job, asking)
        usage = outcome.usage if isinstance(outcome, Answer) else None
        took = await add_attempt(services, await revalidate(services, named), asking, usage, queued_us=_queued_us(job))
        settled = await _settle(services, took, outcome)
        if settled is None:
            record_wasted(services, job, asking, usage)
        else:
            store_answer(services, settled)
    finally:
        if reservation is not None:
            await release_reservation(
                services, reservation, job, took or await add_attempt(services, job, asking, None)
            )


async def answer_of(
    services: Services, job: Job, *, stream: bool, answers: OnModel, since: float | None = None
) -> AsyncIterator[Chunk]:
    """What the job's model says, or its pipeline, in chunks. Raises ModelFailed and its kin, and Parked.

    `answers` hears the name of a model which is another than the job says; `since` is when the asking began, in the
    loop's time.
    """
    if job.pipeline_id is not None:
        yield Chunk((await run_pipeline(services, job, perform)).body)
        return
    model = await services.caches.models.find(job.target)
    if has_single_endpoint(model):
        if model.name != job.model:
            answers(model.name)
        chunks = await ask_model(services, job, model, job.target, stream=stream)
    else:
        chunks = route(services, job, model, stream=stream, answers=answers, since=since)
    size = 0
    try:
        async for chunk in chunks:
            size += len(chunk.raw)
            if size > MAX_ANSWER_BYTES:
                raise ModelGarbled("The model's answer is too large.")
            yield chunk
    except ModelFailed as error:
        services.runtime.logs.add(model.name, "error", error.message)
        raise


def collect_answer(job: Job, chunks: Sequence[Chunk]) -> Answer:
    """The answer, and what it left at its upstream; what was told before took no tokens now. Raises ModelGarbled."""
    if job.path in KNOWN or parse_route(job.path) is None or has_a_known_shape(chunks):
        answer = collect(chunks, job.body)
        told = [answer.body]
    else:
        answer = as_binary(chunks, job.body)
        told = [sse.data_of(chunk.raw) for chunk in reversed(chunks)]
    if creates_no_object(job.path):
        return answer
    if not creates_object(job.path):
        return msgspec.structs.replace(answer, usage=Usage())
    made = next((name for body in told if (name := created_object_id(job.path, body))), None)
    return msgspec.structs.replace(answer, upstream_object_id=made)


def to_caller_error(error: Exception, job: Job) -> SignoffError:
    """`error` as one that a caller may see; a fault of ours is logged."""
    if isinstance(error, SignoffError):
        return error
    log.error("asking the model failed unexpectedly", job=job.id, exc_info=error)
    return ModelFailed("The model could not be asked, because of a fault in this server; its log says more.")


async def _settle(services: Services, job: Job, outcome: Answer | SignoffError) -> Job | None:
    """Settles the job. Its lease ends with that, which is no loss that anybody need hear of."""
    services.runtime.leases.drop(job.id)
    return await settle(services, job, outcome)


async def _postpone(services: Services, job: Job, seconds: float) -> None:
    """Gives the job back until then, with its attempt. All who wait for one limit do not come at one instant."""
    services.runtime.leases.drop(job.id)
    wait = min(seconds, LONGEST_PUT_OFF_SECONDS) + services.ids.random_float() * max(1.0, min(seconds, SPREAD_SECONDS))
    step = TransitionRequest(verb="release", actor=services.ids.actor, lease=job.lease, after_seconds={"due_at": wait})
    with contextlib.suppress(Stale):
        await services.store.jobs.transition(job.id, step)


async def _outcome(services: Services, job: Job, asking: Attempt) -> tuple[Job, Answer | SignoffError]:
    """What came of it, and the job with the model that it came from. A run takes nothing itself. Raises Parked."""
    heard = list[str]()
    if job.pipeline_id is None:
        asking.begin()
    try:
        async for chunk in answer_of(services, job, stream=asks_for_a_stream(job.body), answers=heard.append):
            asking.add_chunk(chunk)
        outcome = collect_answer(job, asking.chunks)
    except RunParked:
        raise
    except Exception as error:  # noqa: BLE001 -- whatever it was, the job must learn of it
        outcome = to_caller_error(error, job)
    return (msgspec.structs.replace(job, model=heard[-1]) if heard else job), outcome


def _queued_us(job: Job) -> int | None:
    """How long a job that was just claimed has waited for that; None where it was asked before."""
    return job.updated_at - max(job.created_at, job.due_at) if job.attempt == 1 and job.round == 0 else None


class _Peek(msgspec.Struct):
    stream: bool = False


def asks_for_a_stream(body: bytes) -> bool:
    """Whether `body` says `"stream": true`."""
    try:
        return msgspec.json.decode(body, type=_Peek).stream
    except (ValueError, RecursionError):
        return False


async def _release_job(services: Services, job: Job, asking: Attempt) -> None:
    try:
        await asyncio.shield(services.runtime.background.spawn(_release(services, job, asking)))
    except Exception as error:  # noqa: BLE001 -- its lease will lapse
        log.warning("could not give a job back", job=job.id, error=repr(error))
    else:
        services.adapters.broker.notify(job.id, job.priority)


async def _release(services: Services, job: Job, asking: Attempt) -> None:
    took = await add_attempt(services, job, asking, None)
    step = TransitionRequest(verb="release", actor=services.ids.actor, lease=job.lease, changes=usage_columns(took))
    await services.store.jobs.transition(job.id, step)
