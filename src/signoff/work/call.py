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
from signoff.core.job import INTERRUPTED, LEFT, Job
from signoff.core.limits import Room
from signoff.core.retry import wait_seconds
from signoff.core.upstream_objects import made_in
from signoff.errors import JobFailed, ModelBusy, ModelCrashed, ModelDown, SignoffError
from signoff.runtime.broadcast import Shared
from signoff.runtime.inflight import Flight
from signoff.work.admit import admit, sampling_of
from signoff.work.await_review import chunks_of_ended, signed_off
from signoff.work.inference.caching import recalled, remember, still_the_same
from signoff.work.inference.metering import spent, waste
from signoff.work.inference.reserve import give_back, reserve
from signoff.work.jobs.query import failure_for, failure_of, find, unfinished
from signoff.work.perform import answer_of, as_error, collected
from signoff.work.pipelines.run import Parked
from signoff.work.record import begin_record, end_record, is_left, leave_record, record_hit
from signoff.work.services import Desk
from signoff.work.submit import check_same

LONGEST_WAIT_SECONDS = 5.0


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is under way. `joined`: its job is another call's, and this one only waits for the end.

    `shared` is what it reads, where other calls of this process may read the same. `recalled`: the cache has answered.
    """

    ask: Ask
    flight: Flight
    with_usage: bool
    joined: bool = False
    shared: Shared | None = None
    recalled: bool = False


async def begin(desk: Desk, ask: Ask, *, with_usage: bool = False) -> Call:
    """Admits the ask, and writes its job first where it must survive: with a key, or where it may be held.

    Raises what `admit` and `reserve` raise, and KeyReused.
    """
    asked = await admit(desk, ask)
    if asked.cache_key is not None and (hit := await recalled(desk, ask, asked)) is not None:
        return await _begin_recalled(desk, ask, hit, with_usage=with_usage)
    if asked.idempotency_key is not None:
        return await _begin_shared(desk, ask, asked, with_usage=with_usage)
    if ask.is_retry and (standing := await unfinished(desk, asked)) is not None:
        flight = Flight(standing, actor=ask.caller.actor)
        return Call(ask=ask, flight=flight, with_usage=with_usage, joined=True)
    if _may_share(ask, asked):
        model = await desk.models.find(asked.target)
        is_wanted = desk.rules.coalesce if model.coalesce is None else model.coalesce
        if is_wanted and _is_repeatable(ask, asked):
            return await _begin_alike(desk, ask, asked, desk.models.version_of(model), with_usage=with_usage)
    return Call(ask=ask, flight=await _begin_flight(desk, ask, asked), with_usage=with_usage)


async def _begin_flight(desk: Desk, ask: Ask, asked: Job) -> Flight:
    """The flight of a job that has room under its limits, which is given back where another job stands already."""
    room = None if asked.pipeline_id is not None else await reserve(desk, asked)  # its steps have limits
    if room is None:
        return await begin_record(desk, asked, ask.caller.actor)
    try:
        flight = await begin_record(desk, asked, ask.caller.actor)
    except BaseException:
        await give_back(desk, room, asked, asked, asked=False)
        raise
    if flight.job.id == asked.id:
        flight.room = room
    else:
        await give_back(desk, room, asked, asked, asked=False)
    return flight


async def look_up(desk: Desk, ask: Ask) -> Job | None:
    """The job that `ask` would be if the cache has its answer; nothing is written, and nobody is asked.

    Raises what `admit` raises.
    """
    return await recalled(desk, ask, await admit(desk, ask))


async def _begin_recalled(desk: Desk, ask: Ask, hit: Job, *, with_usage: bool) -> Call:
    """The cache has the answer; but what stands under the caller's key already comes first."""
    job = await record_hit(desk, hit, ask.caller.actor)
    flight = Flight(job, actor=ask.caller.actor)
    if job.id == hit.id:
        return Call(ask=ask, flight=flight, with_usage=with_usage, recalled=True)
    check_same(job, hit)
    shared = desk.in_flight.shared(job.id)
    return Call(ask=ask, flight=flight, with_usage=with_usage, joined=True, shared=shared)


def _may_share(ask: Ask, asked: Job) -> bool:
    """Whether an equal call could be due an equal answer, as far as can be told without its body."""
    if asked.policy.may_hold or asked.path not in KNOWN or asked.pipeline_id is not None:
        return False
    return not ask.fresh.no_store and not ask.fresh.no_cache


def _is_repeatable(ask: Ask, asked: Job) -> bool:
    """Whether its body says so; it was read already unless it is another by now."""
    if ask.sampling is not None and asked.body is ask.body:
        return ask.sampling.is_repeatable
    return sampling_of(asked.body).is_repeatable


async def _begin_alike(desk: Desk, ask: Ask, asked: Job, version: str, *, with_usage: bool) -> Call:
    """The call that joins an equal one of the same user and key, of the model as it is now, or that others may join."""
    request = (asked.user_id, asked.key_id, asked.target, version, asked.path, asked.body)
    if (standing := desk.in_flight.alike(request)) is not None:
        flight, shared = Flight(standing, actor=ask.caller.actor), desk.in_flight.shared(standing.id)
        return Call(ask=ask, flight=flight, with_usage=with_usage, joined=True, shared=shared)
    desk.in_flight.liken(request, asked)
    try:
        call = await _begin_shared(desk, ask, asked, with_usage=with_usage)
    except BaseException:
        desk.in_flight.unliken(request, asked)
        raise
    if call.shared is not None and call.shared.task is not None:
        call.shared.task.add_done_callback(lambda _: desk.in_flight.unliken(request, asked))
    return call


async def _begin_shared(desk: Desk, ask: Ask, asked: Job, *, with_usage: bool) -> Call:
    """The call that asks under this key, in a task of its own; or one that joins the job which stands there."""
    shared = Shared()
    desk.in_flight.share(asked.id, shared)
    try:
        flight = await _begin_flight(desk, ask, asked)
    except BaseException:
        desk.in_flight.unshare(asked.id)
        shared.fail(failure_for(asked, LEFT))
        raise
    if flight.job.id != asked.id:
        desk.in_flight.unshare(asked.id)
        check_same(flight.job, asked)
        shared = desk.in_flight.shared(flight.job.id)
        return Call(ask=ask, flight=flight, with_usage=with_usage, joined=True, shared=shared)
    call = Call(ask=ask, flight=flight, with_usage=with_usage, shared=shared)
    shared.task = desk.background.spawn(shared.fill(_ask(desk, call), failure_for(asked, INTERRUPTED)))
    shared.task.add_done_callback(lambda _: desk.in_flight.unshare(asked.id))
    return call


async def chunks_of(desk: Desk, call: Call) -> AsyncGenerator[Chunk]:
    """The answer as it comes; a held one once it is signed off.

    Leaving (by closing or cancelling) while the model works cancels the job, unless others wait for it too.
    Raises ModelFailed and its kin, JobFailed, ReviewPending.
    """
    if call.recalled:
        for chunk in chunks_of_ended(call.flight.job, stream=call.ask.stream, with_usage=call.with_usage):
            yield chunk
        return
    if call.joined or call.shared is not None:
        async with contextlib.aclosing(_joined(desk, call)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    async with contextlib.aclosing(_ask(desk, call)) as chunks:
        async for chunk in chunks:
            yield chunk
    if _waits(call.flight.job):
        async for chunk in signed_off(desk, call.flight.job, call.ask, with_usage=call.with_usage):
            yield chunk


async def _joined(desk: Desk, call: Call) -> AsyncGenerator[Chunk]:
    """What all callers of one job get. Where nobody asks any more, this one asks anew."""
    flight = call.flight
    while not call.recalled:
        try:
            async with contextlib.aclosing(_together(desk, call)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except JobFailed as failure:
            if not (call.joined and _asks_anew(call, failure)):
                raise
        else:
            return
        call = await begin(desk, call.ask, with_usage=call.with_usage)
        flight.job = call.flight.job  # which the door tells of
    for chunk in chunks_of_ended(call.flight.job, stream=call.ask.stream, with_usage=call.with_usage):
        yield chunk


def _asks_anew(call: Call, failure: JobFailed) -> bool:
    """Whether those who asked have left, or the process that asked for them has vanished."""
    return is_left(failure) or (call.shared is None and failure.code == INTERRUPTED.code)


async def _together(desk: Desk, call: Call) -> AsyncGenerator[Chunk]:
    if call.shared is not None:
        async with contextlib.aclosing(call.shared.read()) as chunks:
            async for chunk in chunks:
                yield chunk
    elif not call.joined:
        async with contextlib.aclosing(_ask(desk, call)) as chunks:
            async for chunk in chunks:
                yield chunk
    if (call.joined and call.shared is None) or _waits(await _latest(desk, call)):
        async for chunk in signed_off(desk, call.flight.job, call.ask, with_usage=call.with_usage):
            yield chunk


def _waits(job: Job) -> bool:
    """Whether its caller waits for a person: it may be held, or is a run that waits for its steps."""
    return job.policy.may_hold or (job.pipeline_id is not None and not job.is_terminal)


async def _latest(desk: Desk, call: Call) -> Job:
    """The job as it is by now, if it is a run: another call of this process may have parked it."""
    job = call.flight.job
    return job if job.pipeline_id is None else await find(desk, job.id)


def _ask(desk: Desk, call: Call) -> AsyncGenerator[Chunk]:
    """Asks the model. Chunks come out at once, the last one when the job is settled; none if it may be held."""
    return _asked(desk, call) if call.flight.room is None else _asked_in_room(desk, call, call.flight.room)


async def _asked_in_room(desk: Desk, call: Call, room: Room) -> AsyncGenerator[Chunk]:
    """The same; what the call has used is settled before its last chunk comes out, or it is left."""
    flight, before, is_settled = call.flight, call.flight.job, False
    try:
        async with contextlib.aclosing(_asked(desk, call)) as chunks:
            async for chunk in chunks:
                if _is_last(chunk):
                    is_settled = True
                    await give_back(desk, room, before, flight.job)
                yield chunk
    finally:
        if not is_settled:
            await give_back(desk, room, before, await _taken(desk, flight))


async def _taken(desk: Desk, flight: Flight) -> Job:
    """The flight's job with what it has taken; also where it was lost, and what its model said is in no row of it."""
    return flight.job if flight.is_counted else await spent(desk, flight.job, flight.asking, None)


async def _asked(desk: Desk, call: Call) -> AsyncGenerator[Chunk]:
    flight = call.flight
    passes = not flight.job.policy.may_hold
    task = asyncio.current_task()
    flight.take_up(task)
    try:
        async for chunk in _attempts(desk, flight, stream=call.ask.stream):
            _note_made(flight, chunk)
            if passes and not _is_last(chunk):
                flight.take_up(None)  # the task is the reader's meanwhile, and not to be cancelled
                yield chunk
                flight.take_up(task)
        answer = collected(flight.job, flight.asking.chunks)
        flight.job = await still_the_same(desk, flight.job)
        settled = await end_record(desk, flight, answer)
    except Parked as parked:
        desk.leases.drop(flight.job.id)
        flight.job, flight.is_recorded = parked.job, True
        return
    except (asyncio.CancelledError, GeneratorExit) as end:
        if isinstance(end, GeneratorExit) or not flight.lost:
            await leave_record(desk, flight, call.ask.caller.actor)
            raise
        settled = None
        asyncio.current_task().uncancel()  # pyright: ignore[reportOptionalMemberAccess] -- it was our own cancel
    except Exception as error:
        failure = as_error(error, flight.job)
        if not flight.is_recorded:  # else it was the record that failed
            await end_record(desk, flight, failure)
        raise failure from error
    if settled is None:
        waste(desk, flight.job, flight.asking)
        raise failure_of(await find(desk, flight.job.id))
    flight.job = settled
    remember(desk, settled)
    got = flight.asking.chunks
    if passes and got and _is_last(got[-1]):
        yield got[-1]


def _note_made(flight: Flight, chunk: Chunk) -> None:
    """The first event of a response's stream says what it is called at the upstream."""
    if chunk.event and flight.job.path == RESPONSES and len(flight.asking.chunks) == 1:
        flight.job = msgspec.structs.replace(flight.job, made=made_in(sse.data_of(chunk.raw)))


async def _attempts(desk: Desk, flight: Flight, *, stream: bool) -> AsyncIterator[Chunk]:
    """Chunks of the first attempt that gives any; a failure before that is tried again where it can help."""
    while True:
        if flight.job.pipeline_id is None:  # a run takes nothing itself: its steps do
            flight.asking.begin()
        try:
            chunks = answer_of(desk, flight.job, stream=stream, answers=flight.is_answered_by, since=flight.began_at)
            async for chunk in chunks:
                flight.asking.take(chunk)
                yield chunk
        except SignoffError as error:
            wait = _wait_before_retry(desk, flight.job, error)
            if flight.asking.chunks or wait is None:
                raise
            await asyncio.sleep(wait)
            flight.job = msgspec.structs.replace(flight.job, attempt=flight.job.attempt + 1)
        else:
            return


def _wait_before_retry(desk: Desk, job: Job, error: SignoffError) -> float | None:
    """Seconds until the next attempt, or None: a caller who waits is told of a long wait, a line or a crash instead."""
    if not error.retryable or job.attempt >= job.max_attempts or isinstance(error, ModelCrashed | ModelBusy):
        return None
    if isinstance(error, ModelDown) and error.is_final:
        return None
    wait = wait_seconds(desk.rules.backoff, job.attempt, desk.dice(), error.retry_after_seconds)
    return wait if wait <= LONGEST_WAIT_SECONDS else None


_LAST = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")


def _is_last(chunk: Chunk) -> bool:
    return not chunk.event or chunk.raw.startswith(_LAST) or sse.data_of(chunk.raw) == b"[DONE]"
