"""Call: the now lane. The caller waits for the answer, and for its sign-off where one is wanted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from signoff.core import sse
from signoff.core.answer import Chunk, collect
from signoff.core.ask import Ask
from signoff.core.job import Job
from signoff.core.retry import wait_seconds
from signoff.errors import JobFailed, ModelCrashed, SignoffError
from signoff.parts.inflight import Flight
from signoff.parts.shared import Shared
from signoff.work.admit import admit
from signoff.work.desk import Desk
from signoff.work.look import failure_for, failure_of, find, unfinished
from signoff.work.perform import answer_of, as_error
from signoff.work.record import INTERRUPTED, LEFT, begin_record, end_record, is_left, leave_record
from signoff.work.settle import retry_after_seconds
from signoff.work.signoff import signed_off
from signoff.work.submit import check_same

LONGEST_WAIT_SECONDS = 5.0


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is under way. `joined`: its job is another call's, and this one only waits for the end.

    `shared` is what it reads, where other calls of this process may read the same.
    """

    ask: Ask
    flight: Flight
    with_usage: bool
    joined: bool = False
    shared: Shared | None = None


async def begin(desk: Desk, ask: Ask, *, with_usage: bool = False) -> Call:
    """Admits the ask, and writes its job first where it must survive: with a key, or where it may be held.

    Raises what `admit` raises, and KeyReused.
    """
    asked = msgspec.structs.replace(await admit(desk, ask), attempt=1, lease=desk.new_id())
    if asked.idempotency_key is not None:
        return await _begin_shared(desk, ask, asked, with_usage=with_usage)
    if ask.is_retry and (standing := await unfinished(desk, asked)) is not None:
        flight = Flight(standing, actor=ask.caller.actor)
        return Call(ask=ask, flight=flight, with_usage=with_usage, joined=True)
    return Call(ask=ask, flight=await begin_record(desk, asked, ask.caller.actor), with_usage=with_usage)


async def _begin_shared(desk: Desk, ask: Ask, asked: Job, *, with_usage: bool) -> Call:
    """The call that asks under this key, in a task of its own; or one that joins the job which stands there."""
    shared = Shared()
    desk.in_flight.share(asked.id, shared)
    try:
        flight = await begin_record(desk, asked, ask.caller.actor)
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
    if call.joined or call.shared is not None:
        async with contextlib.aclosing(_joined(desk, call)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    async for chunk in _ask(desk, call):
        yield chunk
    if call.flight.job.policy.may_hold:
        async for chunk in signed_off(desk, call.flight.job, call.ask, with_usage=call.with_usage):
            yield chunk


async def _joined(desk: Desk, call: Call) -> AsyncGenerator[Chunk]:
    """What all callers of one job get. Where nobody asks any more, this one asks anew."""
    while True:
        try:
            async with contextlib.aclosing(_together(desk, call)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except JobFailed as failure:
            if not (call.joined and _asks_anew(call, failure)):
                raise
        else:
            return
        again = await begin(desk, call.ask, with_usage=call.with_usage)
        call.flight.job = again.flight.job  # which the door tells of
        call = again


def _asks_anew(call: Call, failure: JobFailed) -> bool:
    """Whether those who asked have left, or the process that asked for them has vanished."""
    return is_left(failure) or (call.shared is None and failure.code == INTERRUPTED.code)


async def _together(desk: Desk, call: Call) -> AsyncGenerator[Chunk]:
    if call.shared is not None:
        async with contextlib.aclosing(call.shared.read()) as chunks:
            async for chunk in chunks:
                yield chunk
    elif not call.joined:
        async for chunk in _ask(desk, call):
            yield chunk
    if (call.joined and call.shared is None) or call.flight.job.policy.may_hold:
        async for chunk in signed_off(desk, call.flight.job, call.ask, with_usage=call.with_usage):
            yield chunk


async def _ask(desk: Desk, call: Call) -> AsyncIterator[Chunk]:
    """Asks the model. Chunks come out at once, the last one when the job is settled; none if it may be held."""
    flight, got = call.flight, list[Chunk]()
    passes = not flight.job.policy.may_hold
    flight.task = asyncio.current_task()
    try:
        async for chunk in _attempts(desk, flight, stream=call.ask.stream):
            got.append(chunk)
            if passes and not _is_last(chunk):
                yield chunk
        settled = await end_record(desk, flight, collect(got, flight.job.body))
    except (asyncio.CancelledError, GeneratorExit):
        if not flight.lost:
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
        raise failure_of(await find(desk, flight.job.id))
    flight.job = settled
    if passes and got and _is_last(got[-1]):
        yield got[-1]


async def _attempts(desk: Desk, flight: Flight, *, stream: bool) -> AsyncIterator[Chunk]:
    """Chunks of the first attempt that gives any; a failure before that is tried again where it can help."""
    while True:
        began = False
        try:
            async for chunk in answer_of(desk, flight.job, stream=stream):
                began = True
                yield chunk
        except SignoffError as error:
            wait = _wait_before_retry(desk, flight.job, error)
            if began or wait is None:
                raise
            await asyncio.sleep(wait)
            flight.job = msgspec.structs.replace(flight.job, attempt=flight.job.attempt + 1)
        else:
            return


def _wait_before_retry(desk: Desk, job: Job, error: SignoffError) -> float | None:
    """Seconds until the next attempt, or None: a caller who waits is told of a long wait instead, and of a crash."""
    if not error.retryable or isinstance(error, ModelCrashed) or job.attempt >= job.max_attempts:
        return None
    wait = wait_seconds(desk.rules.backoff, job.attempt, desk.dice(), retry_after_seconds(error))
    return wait if wait <= LONGEST_WAIT_SECONDS else None


def _is_last(chunk: Chunk) -> bool:
    return not chunk.event or sse.data_of(chunk.raw) == b"[DONE]"
