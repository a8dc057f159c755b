"""Call: the now lane. The caller waits for the answer, and for its sign-off where one is wanted."""

from __future__ import annotations

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

LONGEST_WAIT_SECONDS = 5.0


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is under way. `joined`: its job is another call's, and this one only waits for the end.

    `shared` is what it reads, where other calls of this process may read the same. `recalled`: the cache has answered.
    """

    ask: Ask
    inflight: InflightCall
    with_usage: bool
    joined: bool = False
    shared: Broadcast | None = None
    cached_job: bool = False


async def begin_call(services: Services, ask: Ask, *, with_usage: bool = False) -> Call:
    """Admits the ask, and writes its job first where it must survive: with a key, or where it may be held.

    Raises what `admit` and `reserve` raise, and KeyReused.
    """
    asked = await admit(services, ask)
    if asked.cache_key is not None and (hit := await lookup_answer(services, ask, asked)) is not None:
        return await _begin_cached(services, ask, hit, with_usage=with_usage)
    if asked.idempotency_key is not None:
        return await _begin_shared(services, ask, asked, with_usage=with_usage)
    if ask.is_retry and (standing := await find_unfinished(services, asked)) is not None:
        inflight = InflightCall(standing, actor=ask.caller.actor)
        return Call(ask=ask, inflight=inflight, with_usage=with_usage, joined=True)
    if _may_share(ask, asked):
        model = await services.caches.models.find(asked.target)
        is_wanted = services.rules.coalesce if model.coalesce is None else model.coalesce
        if is_wanted and _is_repeatable(ask, asked):
            return await _begin_coalesced(
                services, ask, asked, services.caches.models.version_of(model), with_usage=with_usage
            )
    return Call(ask=ask, inflight=await _begin_new(services, ask, asked), with_usage=with_usage)


async def _begin_new(services: Services, ask: Ask, asked: Job) -> InflightCall:
    """The flight of a job that has room under its limits, which is given back where another job stands already."""
    reservation = None if asked.pipeline_id is not None else await reserve(services, asked)  # its steps have limits
    if reservation is None:
        return await begin_record(services, asked, ask.caller.actor)
    try:
        inflight = await begin_record(services, asked, ask.caller.actor)
    except BaseException:
        await release_reservation(services, reservation, asked, asked, asked=False)
        raise
    if inflight.job.id == asked.id:
        inflight.reservation = reservation
    else:
        await release_reservation(services, reservation, asked, asked, asked=False)
    return inflight


async def lookup_cached(services: Services, ask: Ask) -> Job | None:
    """The job that `ask` would be if the cache has its answer; nothing is written, and nobody is asked.

    Raises what `admit` raises.
    """
    return await lookup_answer(services, ask, await admit(services, ask))


async def _begin_cached(services: Services, ask: Ask, hit: Job, *, with_usage: bool) -> Call:
    """The cache has the answer; but what stands under the caller's key already comes first."""
    job = await record_hit(services, hit, ask.caller.actor)
    inflight = InflightCall(job, actor=ask.caller.actor)
    if job.id == hit.id:
        return Call(ask=ask, inflight=inflight, with_usage=with_usage, cached_job=True)
    check_same(job, hit)
    shared = services.runtime.inflight_calls.shared(job.id)
    return Call(ask=ask, inflight=inflight, with_usage=with_usage, joined=True, shared=shared)


def _may_share(ask: Ask, asked: Job) -> bool:
    """Whether an equal call could be due an equal answer, as far as can be told without its body."""
    if asked.policy.may_hold or asked.path not in KNOWN or asked.pipeline_id is not None:
        return False
    return not ask.cache_control.no_store and not ask.cache_control.no_cache


def _is_repeatable(ask: Ask, asked: Job) -> bool:
    """Whether its body says so; it was read already unless it is another by now."""
    if ask.sampling is not None and asked.body is ask.body:
        return ask.sampling.is_repeatable
    return parse_sampling(asked.body).is_repeatable


async def _begin_coalesced(services: Services, ask: Ask, asked: Job, version: str, *, with_usage: bool) -> Call:
    """The call that joins an equal one of the same user and key, of the model as it is now, or that others may join."""
    request = (asked.user_id, asked.key_id, asked.target, version, asked.path, asked.body)
    if (standing := services.runtime.inflight_calls.find_coalesced(request)) is not None:
        inflight, shared = (
            InflightCall(standing, actor=ask.caller.actor),
            services.runtime.inflight_calls.shared(standing.id),
        )
        return Call(ask=ask, inflight=inflight, with_usage=with_usage, joined=True, shared=shared)
    services.runtime.inflight_calls.coalesce(request, asked)
    try:
        call = await _begin_shared(services, ask, asked, with_usage=with_usage)
    except BaseException:
        services.runtime.inflight_calls.stop_coalescing(request, asked)
        raise
    if call.shared is not None and call.shared.task is not None:
        call.shared.task.add_done_callback(lambda _: services.runtime.inflight_calls.stop_coalescing(request, asked))
    return call


async def _begin_shared(services: Services, ask: Ask, asked: Job, *, with_usage: bool) -> Call:
    """The call that asks under this key, in a task of its own; or one that joins the job which stands there."""
    shared = Broadcast()
    services.runtime.inflight_calls.share(asked.id, shared)
    try:
        inflight = await _begin_new(services, ask, asked)
    except BaseException:
        services.runtime.inflight_calls.unshare(asked.id)
        shared.fail(caller_error(asked, CALLER_LEFT))
        raise
    if inflight.job.id != asked.id:
        services.runtime.inflight_calls.unshare(asked.id)
        check_same(inflight.job, asked)
        shared = services.runtime.inflight_calls.shared(inflight.job.id)
        return Call(ask=ask, inflight=inflight, with_usage=with_usage, joined=True, shared=shared)
    call = Call(ask=ask, inflight=inflight, with_usage=with_usage, shared=shared)
    shared.task = services.runtime.background.spawn(shared.fill(_ask(services, call), caller_error(asked, INTERRUPTED)))
    shared.task.add_done_callback(lambda _: services.runtime.inflight_calls.unshare(asked.id))
    return call


async def call_chunks(services: Services, call: Call) -> AsyncGenerator[Chunk]:
    """The answer as it comes; a held one once it is signed off.

    Leaving (by closing or cancelling) while the model works cancels the job, unless others wait for it too.
    Raises ModelFailed and its kin, JobFailed, ReviewPending.
    """
    if call.cached_job:
        for chunk in chunks_of_finished(call.inflight.job, stream=call.ask.stream, with_usage=call.with_usage):
            yield chunk
        return
    if call.joined or call.shared is not None:
        async with contextlib.aclosing(_joined(services, call)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    async with contextlib.aclosing(_ask(services, call)) as chunks:
        async for chunk in chunks:
            yield chunk
    if _waits(call.inflight.job):
        async for chunk in await_review(services, call.inflight.job, call.ask, with_usage=call.with_usage):
            yield chunk


async def _joined(services: Services, call: Call) -> AsyncGenerator[Chunk]:
    """What all callers of one job get. Where nobody asks any more, this one asks anew."""
    inflight = call.inflight
    while not call.cached_job:
        try:
            async with contextlib.aclosing(_together(services, call)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except JobFailed as failure:
            if not (call.joined and _should_ask_again(call, failure)):
                raise
        else:
            return
        call = await begin_call(services, call.ask, with_usage=call.with_usage)
        inflight.job = call.inflight.job  # which the door tells of
    for chunk in chunks_of_finished(call.inflight.job, stream=call.ask.stream, with_usage=call.with_usage):
        yield chunk


def _should_ask_again(call: Call, failure: JobFailed) -> bool:
    """Whether those who asked have left, or the process that asked for them has vanished."""
    return is_caller_left(failure) or (call.shared is None and failure.code == INTERRUPTED.code)


async def _together(services: Services, call: Call) -> AsyncGenerator[Chunk]:
    if call.shared is not None:
        async with contextlib.aclosing(call.shared.read()) as chunks:
            async for chunk in chunks:
                yield chunk
    elif not call.joined:
        async with contextlib.aclosing(_ask(services, call)) as chunks:
            async for chunk in chunks:
                yield chunk
    if (call.joined and call.shared is None) or _waits(await _latest(services, call)):
        async for chunk in await_review(services, call.inflight.job, call.ask, with_usage=call.with_usage):
            yield chunk


def _waits(job: Job) -> bool:
    """Whether its caller waits for a person: it may be held, or is a run that waits for its steps."""
    return job.policy.may_hold or (job.pipeline_id is not None and not job.is_terminal)


async def _latest(services: Services, call: Call) -> Job:
    """The job as it is by now, if it is a run: another call of this process may have parked it."""
    job = call.inflight.job
    return job if job.pipeline_id is None else await load_job(services, job.id)


def _ask(services: Services, call: Call) -> AsyncGenerator[Chunk]:
    """Asks the model. Chunks come out at once, the last one when the job is settled; none if it may be held."""
    return (
        _asked(services, call)
        if call.inflight.reservation is None
        else _asked_in_room(services, call, call.inflight.reservation)
    )


async def _asked_in_room(services: Services, call: Call, reservation: Reservation) -> AsyncGenerator[Chunk]:
    """The same; what the call has used is settled before its last chunk comes out, or it is left."""
    inflight, before, is_settled = call.inflight, call.inflight.job, False
    try:
        async with contextlib.aclosing(_asked(services, call)) as chunks:
            async for chunk in chunks:
                if _is_last(chunk):
                    is_settled = True
                    await release_reservation(services, reservation, before, inflight.job)
                yield chunk
    finally:
        if not is_settled:
            await release_reservation(services, reservation, before, await _taken(services, inflight))


async def _taken(services: Services, inflight: InflightCall) -> Job:
    """The flight's job with what it has taken; also where it was lost, and what its model said is in no row of it."""
    return inflight.job if inflight.is_counted else await add_attempt(services, inflight.job, inflight.attempt, None)


async def _asked(services: Services, call: Call) -> AsyncGenerator[Chunk]:
    inflight = call.inflight
    passes = not inflight.job.policy.may_hold
    task = asyncio.current_task()
    inflight.serve_by(task)
    try:
        async for chunk in _attempts(services, inflight, stream=call.ask.stream):
            _note_made(inflight, chunk)
            if passes and not _is_last(chunk):
                inflight.serve_by(None)  # the task is the reader's meanwhile, and not to be cancelled
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
        asyncio.current_task().uncancel()  # pyright: ignore[reportOptionalMemberAccess] -- it was our own cancel
    except Exception as error:
        failure = to_caller_error(error, inflight.job)
        if not inflight.is_recorded:  # else it was the record that failed
            await end_record(services, inflight, failure)
        raise failure from error
    if settled is None:
        record_wasted(services, inflight.job, inflight.attempt)
        raise failure_of_job(await load_job(services, inflight.job.id))
    inflight.job = settled
    store_answer(services, settled)
    got = inflight.attempt.chunks
    if passes and got and _is_last(got[-1]):
        yield got[-1]


def _note_made(inflight: InflightCall, chunk: Chunk) -> None:
    """The first event of a response's stream says what it is called at the upstream."""
    if chunk.event and inflight.job.path == RESPONSES and len(inflight.attempt.chunks) == 1:
        inflight.job = msgspec.structs.replace(
            inflight.job, upstream_object_id=object_id_in_event(sse.data_of(chunk.raw))
        )


async def _attempts(services: Services, inflight: InflightCall, *, stream: bool) -> AsyncIterator[Chunk]:
    """Chunks of the first attempt that gives any; a failure before that is tried again where it can help."""
    while True:
        if inflight.job.pipeline_id is None:  # a run takes nothing itself: its steps do
            inflight.attempt.begin()
        try:
            chunks = answer_of(
                services, inflight.job, stream=stream, answers=inflight.is_answered_by, since=inflight.started_at
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
    """Seconds until the next attempt, or None: a caller who waits is told of a long wait, a line or a crash instead."""
    if not error.retryable or job.attempt >= job.max_attempts or isinstance(error, ModelCrashed | ModelBusy):
        return None
    if isinstance(error, ModelDown) and error.is_final:
        return None
    wait = wait_seconds(services.rules.backoff, job.attempt, services.ids.random_float(), error.retry_after_seconds)
    return wait if wait <= LONGEST_WAIT_SECONDS else None


_LAST = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")


def _is_last(chunk: Chunk) -> bool:
    return not chunk.event or chunk.raw.startswith(_LAST) or sse.data_of(chunk.raw) == b"[DONE]"
