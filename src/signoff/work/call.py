"""Waiting calls (the `now` lane): the client waits for the answer, and for the review of it where there is one."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from signoff.core import sse
from signoff.core.answer import Chunk
from signoff.core.ask import Ask
from signoff.core.endpoints import KNOWN, RESPONSES
from signoff.core.job import CALLER_LEFT, INTERRUPTED, Job
from signoff.core.limits import Reservation
from signoff.core.retry import wait_seconds
from signoff.core.upstream_objects import object_id_in_event
from signoff.errors import JobFailed, ModelBusy, ModelCrashed, ModelDown, SignoffError
from signoff.runtime.broadcast import Broadcast
from signoff.runtime.inflight import InflightCall
from signoff.work.admit import admit, parse_sampling
from signoff.work.await_review import await_review, chunks_of_finished
from signoff.work.inference.caching import lookup_answer, revalidate, store_answer
from signoff.work.inference.metering import add_attempt, record_wasted
from signoff.work.inference.reserve import release_reservation, reserve
from signoff.work.jobs.query import caller_error, failure_of_job, find_unfinished, load_job
from signoff.work.perform import answer_of, collect_answer, to_caller_error
from signoff.work.pipelines.run import RunParked
from signoff.work.record import begin_record, cancel_record, end_record, is_caller_left, record_hit
from signoff.work.services import Services
from signoff.work.submit import check_same

MAX_RETRY_WAIT_SECONDS = 5.0


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A waiting call that has begun."""

    ask: Ask
    """The request of the client."""
    inflight: InflightCall
    """The state of the call in this process; its `job` changes while the call runs."""
    with_usage: bool
    """Send an event with the usage at the end of a stream."""
    is_joined: bool = False
    """The job is that of another call, and this call waits for its end."""
    shared: Broadcast | None = None
    """The chunks that several calls of this process read; None if this call shares none."""
    is_cached: bool = False
    """The job has ended with an answer from the cache."""


async def begin_call(services: Services, ask: Ask, *, with_usage: bool = False) -> Call:
    """Start the call of `ask`; read its answer with `call_chunks`.

    The job is stored first where it must survive a restart: with an idempotency key, if it may be held, or if it is a
    run. A request that equals a running one may join that job. Raises what `admit` and `reserve` raise, and KeyReused.

    Args:
        services: The dependencies.
        ask: The request.
        with_usage: Send an event with the usage at the end of a stream.
    """
    job = await admit(services, ask)
    if job.cache_key is not None and (hit := await lookup_answer(services, ask, job)) is not None:
        return await _begin_cached(services, ask, hit, with_usage=with_usage)
    if job.idempotency_key is not None:
        return await _begin_shared(services, ask, job, with_usage=with_usage)
    if ask.is_retry and (unfinished := await find_unfinished(services, job)) is not None:
        inflight = InflightCall(unfinished, actor=ask.caller.actor)
        return Call(ask=ask, inflight=inflight, with_usage=with_usage, is_joined=True)
    if _may_coalesce(ask, job):
        model = await services.caches.models.find(job.target)
        coalesces = services.rules.coalesce if model.coalesce is None else model.coalesce
        if coalesces and _is_repeatable(ask, job):
            return await _begin_coalesced(
                services, ask, job, services.caches.models.version_of(model), with_usage=with_usage
            )
    return Call(ask=ask, inflight=await _reserve_and_record(services, ask, job), with_usage=with_usage)


async def _reserve_and_record(services: Services, ask: Ask, job: Job) -> InflightCall:
    """Reserve under the limits of the job, and record its start.

    The reservation is released if a job with the same idempotency key exists, which the result then holds.
    """
    # Limits apply to the steps of a run, and not to the run itself.
    reservation = None if job.pipeline_id is not None else await reserve(services, job)
    if reservation is None:
        return await begin_record(services, job, ask.caller.actor)
    try:
        inflight = await begin_record(services, job, ask.caller.actor)
    except BaseException:
        await release_reservation(services, reservation, job, job, reached_model=False)
        raise
    if inflight.job.id == job.id:
        inflight.reservation = reservation
    else:
        await release_reservation(services, reservation, job, job, reached_model=False)
    return inflight


async def lookup_cached(services: Services, ask: Ask) -> Job | None:
    """Return the job of `ask` with its answer from the cache; None if the cache has none.

    Store nothing and call no model. Raises what `admit` raises.
    """
    return await lookup_answer(services, ask, await admit(services, ask))


async def _begin_cached(services: Services, ask: Ask, hit: Job, *, with_usage: bool) -> Call:
    """Return the call that the cache has answered, unless a job with the same idempotency key exists."""
    stored = await record_hit(services, hit, ask.caller.actor)
    inflight = InflightCall(stored, actor=ask.caller.actor)
    if stored.id == hit.id:
        return Call(ask=ask, inflight=inflight, with_usage=with_usage, is_cached=True)
    check_same(stored, hit)
    shared = services.runtime.inflight_calls.shared(stored.id)
    return Call(ask=ask, inflight=inflight, with_usage=with_usage, is_joined=True, shared=shared)


def _may_coalesce(ask: Ask, job: Job) -> bool:
    """Return True if equal requests may get the same answer, judged without reading the body."""
    if job.policy.may_hold or job.path not in KNOWN or job.pipeline_id is not None:
        return False
    return not ask.cache_control.no_store and not ask.cache_control.no_cache


def _is_repeatable(ask: Ask, job: Job) -> bool:
    """Return True if the sampling parameters of the body make the answer repeatable."""
    # Rendering a prompt replaces the body, and then the sampling parameters of the request do not apply.
    if ask.sampling is not None and job.body is ask.body:
        return ask.sampling.is_repeatable
    return parse_sampling(job.body).is_repeatable


async def _begin_coalesced(services: Services, ask: Ask, job: Job, version: str, *, with_usage: bool) -> Call:
    """Join a running call with an equal request, or start one that others may join.

    Requests are equal if user, upstream key, target, version of the model, path and body are.
    """
    request = (job.user_id, job.key_id, job.target, version, job.path, job.body)
    if (existing := services.runtime.inflight_calls.find_coalesced(request)) is not None:
        inflight = InflightCall(existing, actor=ask.caller.actor)
        shared = services.runtime.inflight_calls.shared(existing.id)
        return Call(ask=ask, inflight=inflight, with_usage=with_usage, is_joined=True, shared=shared)
    services.runtime.inflight_calls.coalesce(request, job)
    try:
        call = await _begin_shared(services, ask, job, with_usage=with_usage)
    except BaseException:
        services.runtime.inflight_calls.stop_coalescing(request, job)
        raise
    if call.shared is not None and call.shared.task is not None:
        call.shared.task.add_done_callback(lambda _: services.runtime.inflight_calls.stop_coalescing(request, job))
    return call


async def _begin_shared(services: Services, ask: Ask, job: Job, *, with_usage: bool) -> Call:
    """Start the call in a task of its own, so that others may join it and its first caller may leave.

    Join the existing job instead if there is one with the same idempotency key.
    """
    shared = Broadcast()
    services.runtime.inflight_calls.share(job.id, shared)
    try:
        inflight = await _reserve_and_record(services, ask, job)
    except BaseException:
        services.runtime.inflight_calls.unshare(job.id)
        shared.fail(caller_error(job, CALLER_LEFT))
        raise
    if inflight.job.id != job.id:
        services.runtime.inflight_calls.unshare(job.id)
        check_same(inflight.job, job)
        shared = services.runtime.inflight_calls.shared(inflight.job.id)
        return Call(ask=ask, inflight=inflight, with_usage=with_usage, is_joined=True, shared=shared)
    call = Call(ask=ask, inflight=inflight, with_usage=with_usage, shared=shared)
    shared.task = services.runtime.background.spawn(shared.fill(_serve(services, call), caller_error(job, INTERRUPTED)))
    shared.task.add_done_callback(lambda _: services.runtime.inflight_calls.unshare(job.id))
    return call


async def call_chunks(services: Services, call: Call) -> AsyncGenerator[Chunk]:
    """Yield the chunks of the answer as they come; those of a held answer once it is signed off.

    Closing or cancelling the generator while the model works cancels the job, unless other calls wait for it too.
    Raises ModelFailed or a subclass, JobFailed, ReviewPending.
    """
    if call.is_cached:
        for chunk in chunks_of_finished(call.inflight.job, stream=call.ask.stream, with_usage=call.with_usage):
            yield chunk
        return
    if call.is_joined or call.shared is not None:
        async with contextlib.aclosing(_follow_shared(services, call)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    async with contextlib.aclosing(_serve(services, call)) as chunks:
        async for chunk in chunks:
            yield chunk
    if _awaits_person(call.inflight.job):
        async for chunk in await_review(services, call.inflight.job, call.ask, with_usage=call.with_usage):
            yield chunk


async def _follow_shared(services: Services, call: Call) -> AsyncGenerator[Chunk]:
    """Yield the chunks that all callers of one job get; start the call over if the job lost its callers."""
    inflight = call.inflight
    while not call.is_cached:
        try:
            async with contextlib.aclosing(_read_together(services, call)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except JobFailed as failure:
            if not (call.is_joined and _should_start_over(call, failure)):
                raise
        else:
            return
        call = await begin_call(services, call.ask, with_usage=call.with_usage)
        inflight.job = call.inflight.job  # the door names the job of `inflight` to the client
    for chunk in chunks_of_finished(call.inflight.job, stream=call.ask.stream, with_usage=call.with_usage):
        yield chunk


def _should_start_over(call: Call, failure: JobFailed) -> bool:
    """Return True if the job ended because its callers left or its server stopped."""
    return is_caller_left(failure) or (call.shared is None and failure.code == INTERRUPTED.code)


async def _read_together(services: Services, call: Call) -> AsyncGenerator[Chunk]:
    """Yield the shared chunks, then those of the review; wait for the stored job if it runs in another process."""
    if call.shared is not None:
        async with contextlib.aclosing(call.shared.read()) as chunks:
            async for chunk in chunks:
                yield chunk
    elif not call.is_joined:
        async with contextlib.aclosing(_serve(services, call)) as chunks:
            async for chunk in chunks:
                yield chunk
    if (call.is_joined and call.shared is None) or _awaits_person(await _reload_run(services, call)):
        async for chunk in await_review(services, call.inflight.job, call.ask, with_usage=call.with_usage):
            yield chunk


def _awaits_person(job: Job) -> bool:
    """Return True if the caller waits for a review: the job may be held, or is a run that waits for its steps."""
    return job.policy.may_hold or (job.pipeline_id is not None and not job.is_terminal)


async def _reload_run(services: Services, call: Call) -> Job:
    """Return the stored job if it is a run, which another call of this process may have parked; else the job."""
    job = call.inflight.job
    return job if job.pipeline_id is None else await load_job(services, job.id)


def _serve(services: Services, call: Call) -> AsyncGenerator[Chunk]:
    """Call the model, and yield its chunks at once; the last chunk follows when the job is settled.

    Yield nothing if the job may be held.
    """
    return (
        _serve_attempts(services, call)
        if call.inflight.reservation is None
        else _serve_reserved(services, call, call.inflight.reservation)
    )


async def _serve_reserved(services: Services, call: Call, reservation: Reservation) -> AsyncGenerator[Chunk]:
    """Call the model, and settle the reservation before the last chunk, or when the caller leaves."""
    inflight, before, is_settled = call.inflight, call.inflight.job, False
    try:
        async with contextlib.aclosing(_serve_attempts(services, call)) as chunks:
            async for chunk in chunks:
                if _is_last(chunk):
                    is_settled = True
                    await release_reservation(services, reservation, before, inflight.job)
                yield chunk
    finally:
        if not is_settled:
            await release_reservation(services, reservation, before, await _job_with_usage(services, inflight))


async def _job_with_usage(services: Services, inflight: InflightCall) -> Job:
    """Return the job with the usage of its attempt, which a lost job does not have yet."""
    return inflight.job if inflight.is_counted else await add_attempt(services, inflight.job, inflight.attempt, None)


async def _serve_attempts(services: Services, call: Call) -> AsyncGenerator[Chunk]:
    """Call the model, yield its chunks, and record the end of the job, whether it is an answer, an error or a leave."""
    inflight = call.inflight
    may_stream = not inflight.job.policy.may_hold
    task = asyncio.current_task()
    inflight.serve_by(task)
    try:
        async for chunk in _attempt_chunks(services, inflight, stream=call.ask.stream):
            _record_upstream_object(inflight, chunk)
            if may_stream and not _is_last(chunk):
                inflight.serve_by(None)  # the reader's code runs now; do not cancel it
                yield chunk
                inflight.serve_by(task)
        answer = collect_answer(inflight.job, inflight.attempt.chunks)
        inflight.job = await revalidate(services, inflight.job)
        settled = await end_record(services, inflight, answer)
    except RunParked as parked:
        services.runtime.leases.drop(inflight.job.id)
        inflight.job, inflight.is_recorded = parked.job, True
        return
    except (asyncio.CancelledError, GeneratorExit) as end:
        if isinstance(end, GeneratorExit) or not inflight.is_lost:
            await cancel_record(services, inflight, call.ask.caller.actor)
            raise
        settled = None
        asyncio.current_task().uncancel()  # pyright: ignore[reportOptionalMemberAccess] -- cancelled by `on_lease_lost`
    except Exception as error:
        failure = to_caller_error(error, inflight.job)
        if not inflight.is_recorded:  # otherwise recording the end is what failed
            await end_record(services, inflight, failure)
        raise failure from error
    if settled is None:
        record_wasted(services, inflight.job, inflight.attempt)
        raise failure_of_job(await load_job(services, inflight.job.id))
    inflight.job = settled
    store_answer(services, settled)
    chunks = inflight.attempt.chunks
    if may_stream and chunks and _is_last(chunks[-1]):
        yield chunks[-1]


def _record_upstream_object(inflight: InflightCall, chunk: Chunk) -> None:
    """Put the id of the response, which the first event of its stream has, into the job."""
    if chunk.event and inflight.job.path == RESPONSES and len(inflight.attempt.chunks) == 1:
        inflight.job = msgspec.structs.replace(
            inflight.job, upstream_object_id=object_id_in_event(sse.data_of(chunk.raw))
        )


async def _attempt_chunks(services: Services, inflight: InflightCall, *, stream: bool) -> AsyncIterator[Chunk]:
    """Yield the chunks of the first attempt that has any; retry failures before the first chunk if that may help."""
    while True:
        if inflight.job.pipeline_id is None:  # the usage of a run is that of its steps
            inflight.attempt.begin()
        try:
            chunks = answer_of(
                services, inflight.job, stream=stream, on_model=inflight.is_answered_by, started_at=inflight.started_at
            )
            async for chunk in chunks:
                inflight.attempt.add_chunk(chunk)
                yield chunk
        except SignoffError as error:
            wait = _wait_before_retry(services, inflight.job, error)
            if inflight.attempt.chunks or wait is None:
                raise
            await asyncio.sleep(wait)
            inflight.job = msgspec.structs.replace(inflight.job, attempt=inflight.job.attempt + 1)
        else:
            return


def _wait_before_retry(services: Services, job: Job, error: SignoffError) -> float | None:
    """Return the seconds until the next attempt, or None if `error` goes to the caller.

    A waiting caller gets the error at once if the wait would be long, the queue is full, or the process crashed.
    """
    if not error.retryable or job.attempt >= job.max_attempts or isinstance(error, ModelCrashed | ModelBusy):
        return None
    if isinstance(error, ModelDown) and error.is_final:
        return None
    seconds = wait_seconds(services.rules.backoff, job.attempt, services.ids.random_float(), error.retry_after_seconds)
    return seconds if seconds <= MAX_RETRY_WAIT_SECONDS else None


_LAST_EVENTS = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")


def _is_last(chunk: Chunk) -> bool:
    return not chunk.event or chunk.raw.startswith(_LAST_EVENTS) or sse.data_of(chunk.raw) == b"[DONE]"
