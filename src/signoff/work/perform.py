"""Queued jobs (the `later` lane): call the model for a claimed job, and settle the job."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec
import structlog

from signoff.core import sse
from signoff.core.answer import Answer, Chunk, as_binary, collect, has_a_known_shape
from signoff.core.endpoints import KNOWN, parse_route
from signoff.core.job import Job
from signoff.core.model import needs_no_pool
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
# A job that waits for a limit tries again at least this often, as the limit may have been raised.
MAX_POSTPONE_SECONDS = 300.0
OVERLOADED_RETRY_SECONDS = 1.0
MAX_JITTER_SECONDS = 30.0
log = structlog.get_logger()


async def perform(services: Services, job: Job) -> None:
    """Call the model for a claimed job, and settle the job.

    Under a limit that is reached, postpone the job. When cancelled, release the job with its attempt.
    When the lease is lost, leave the job to the worker that has it now.
    """
    assert job.lease is not None  # noqa: S101 -- claiming a job sets its lease
    lost, task, attempt = asyncio.Event(), asyncio.current_task(), Attempt()

    def on_lease_lost() -> None:
        lost.set()
        if task is not None:
            task.cancel()

    with services.runtime.leases.holding(job.id, job.lease, on_lease_lost):
        try:
            await _perform_reserved(services, job, attempt)
        except RunParked:
            log.debug("run_parked", job=job.id)
        except asyncio.CancelledError:
            if not lost.is_set():
                await _release_job(services, job, attempt)
                raise
            record_wasted(services, job, attempt)
            if task is not None:
                task.uncancel()
            log.info("job_lease_lost", job=job.id)


async def _perform_reserved(services: Services, job: Job, attempt: Attempt) -> None:
    """Reserve under the limits of the job, then call its model and settle it; postpone the job if there is no room.

    A waiting run's step fails at once if a budget is spent, as that may last a day. A run itself reserves nothing.
    """
    try:
        reservation = None if job.pipeline_id is not None else await reserve(services, job)
    except LimitReached as denied:
        if denied.retry_after_seconds is None or (job.lane == "now" and isinstance(denied, BudgetSpent)):
            await _settle(services, job, denied)
        else:
            await _postpone(services, job, denied.retry_after_seconds)
        return
    except Overloaded:
        await _postpone(services, job, OVERLOADED_RETRY_SECONDS)
        return
    used = None
    try:
        called, outcome = await _call_model(services, job, attempt)
        usage = outcome.usage if isinstance(outcome, Answer) else None
        queued_us = _queued_us(job)
        used = await add_attempt(services, await revalidate(services, called), attempt, usage, queued_us=queued_us)
        settled = await _settle(services, used, outcome)
        if settled is None:
            record_wasted(services, job, attempt, usage)
        else:
            store_answer(services, settled)
    finally:
        if reservation is not None:
            await release_reservation(
                services, reservation, job, used or await add_attempt(services, job, attempt, None)
            )


async def answer_of(
    services: Services, job: Job, *, stream: bool, on_model: OnModel, started_at: float | None = None
) -> AsyncIterator[Chunk]:
    """Yield the chunks of the answer of the job's model or pipeline. Raises ModelFailed or a subclass, and RunParked.

    Args:
        services: The dependencies.
        job: The job, leased by the caller.
        stream: Ask the model for a stream.
        on_model: Called with the name of the model that answers, if the job names another.
        started_at: Start of the call by the loop's clock, in seconds, for the deadline over all attempts; None for now.
    """
    if job.pipeline_id is not None:
        yield Chunk((await run_pipeline(services, job, perform)).body)
        return
    model = await services.caches.models.find(job.target)
    if needs_no_pool(model):
        if model.name != job.model:
            on_model(model.name)
        chunks = await ask_model(services, job, model, job.target, stream=stream)
    else:
        chunks = route(services, job, model, stream=stream, on_model=on_model, started_at=started_at)
    size = 0
    try:
        async for chunk in chunks:
            size += len(chunk.raw)
            if size > MAX_ANSWER_BYTES:
                raise ModelGarbled(f"The model's answer is larger than {MAX_ANSWER_BYTES} bytes.")
            yield chunk
    except ModelFailed as error:
        services.runtime.logs.add(model.name, "error", error.message)
        raise


def collect_answer(job: Job, chunks: Sequence[Chunk]) -> Answer:
    """Return the answer in `chunks`, with the id of the object that it created at the upstream.

    A request for an object that exists already has no usage. Raises ModelGarbled.
    """
    if job.path in KNOWN or parse_route(job.path) is None or has_a_known_shape(chunks):
        answer = collect(chunks, job.body)
        bodies = [answer.body]
    else:
        answer = as_binary(chunks, job.body)
        bodies = [sse.data_of(chunk.raw) for chunk in reversed(chunks)]
    if creates_no_object(job.path):
        return answer
    if not creates_object(job.path):
        return msgspec.structs.replace(answer, usage=Usage())
    object_id = next((name for body in bodies if (name := created_object_id(job.path, body))), None)
    return msgspec.structs.replace(answer, upstream_object_id=object_id)


def to_caller_error(error: Exception, job: Job) -> SignoffError:
    """Return `error` as an error that a caller may see; log it if it is a fault of this server."""
    if isinstance(error, SignoffError):
        return error
    log.error("model_call_failed", job=job.id, exc_info=error)
    return ModelFailed("The model could not be called because of a fault in this server; see the server's log.")


async def _settle(services: Services, job: Job, outcome: Answer | SignoffError) -> Job | None:
    """Settle the job. Its lease is dropped first, as settling ends it and the end is not a loss."""
    services.runtime.leases.drop(job.id)
    return await settle(services, job, outcome)


async def _postpone(services: Services, job: Job, seconds: float) -> None:
    """Release the job with its attempt, due in about `seconds`.

    Jitter spreads the jobs that wait for the same limit.
    """
    services.runtime.leases.drop(job.id)
    wait = min(seconds, MAX_POSTPONE_SECONDS) + services.ids.random_float() * max(1.0, min(seconds, MAX_JITTER_SECONDS))
    request = TransitionRequest(
        verb="release", actor=services.ids.actor, lease=job.lease, after_seconds={"due_at": wait}
    )
    with contextlib.suppress(Stale):
        await services.store.jobs.transition(job.id, request)


async def _call_model(services: Services, job: Job, attempt: Attempt) -> tuple[Job, Answer | SignoffError]:
    """Call the model; return the job, with the model that answered, and the answer or error.

    A run has no usage of its own. Raises RunParked.
    """
    models = list[str]()
    if job.pipeline_id is None:
        attempt.begin()
    try:
        async for chunk in answer_of(services, job, stream=asks_for_a_stream(job.body), on_model=models.append):
            attempt.add_chunk(chunk)
        outcome = collect_answer(job, attempt.chunks)
    except RunParked:
        raise
    except Exception as error:  # noqa: BLE001 -- any error must settle the job
        outcome = to_caller_error(error, job)
    return (msgspec.structs.replace(job, model=models[-1]) if models else job), outcome


def _queued_us(job: Job) -> int | None:
    """Return the microseconds that a job waited for its first claim; None for later attempts and rounds."""
    return job.updated_at - max(job.created_at, job.due_at) if job.attempt == 1 and job.round == 0 else None


class _StreamField(msgspec.Struct):
    stream: bool = False


def asks_for_a_stream(body: bytes) -> bool:
    """Return True if `body` is a JSON object with `"stream": true`."""
    try:
        return msgspec.json.decode(body, type=_StreamField).stream
    except (ValueError, RecursionError):
        return False


async def _release_job(services: Services, job: Job, attempt: Attempt) -> None:
    try:
        await asyncio.shield(services.runtime.background.spawn(_release_attempt(services, job, attempt)))
    except Exception as error:  # noqa: BLE001 -- the lease lapses, and the sweeper rescues the job
        log.warning("job_release_failed", job=job.id, error=repr(error))
    else:
        services.adapters.broker.notify(job.id, job.priority)


async def _release_attempt(services: Services, job: Job, attempt: Attempt) -> None:
    used = await add_attempt(services, job, attempt, None)
    request = TransitionRequest(verb="release", actor=services.ids.actor, lease=job.lease, changes=usage_columns(used))
    await services.store.jobs.transition(job.id, request)
