"""Call: the now lane. The caller waits for the answer, and for its sign-off where one is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from signoff.core import sse
from signoff.core.answer import Chunk, collect
from signoff.core.ask import Ask
from signoff.core.job import Job
from signoff.core.retry import wait_seconds
from signoff.errors import ModelCrashed, SignoffError
from signoff.parts.inflight import Flight
from signoff.work.admit import admit
from signoff.work.desk import Desk
from signoff.work.look import failure_of, find
from signoff.work.perform import answer_of, as_error
from signoff.work.record import begin_record, end_record, leave_record
from signoff.work.settle import retry_after_seconds
from signoff.work.signoff import signed_off
from signoff.work.submit import check_same

LONGEST_WAIT_SECONDS = 5.0


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is under way. `joined`: its job is another call's, and this one only waits for the end."""

    ask: Ask
    flight: Flight
    with_usage: bool
    joined: bool = False


async def begin(desk: Desk, ask: Ask, *, with_usage: bool = False) -> Call:
    """Admits the ask, and writes its job first where it must survive: with a key, or where it may be held.

    Raises what `admit` raises, and KeyReused.
    """
    asked = msgspec.structs.replace(await admit(desk, ask), attempt=1, lease=desk.new_id())
    flight = await begin_record(desk, asked, ask.caller.actor)
    joined = flight.job.id != asked.id
    if joined:
        check_same(flight.job, asked)
    return Call(ask=ask, flight=flight, with_usage=with_usage, joined=joined)


async def chunks_of(desk: Desk, call: Call) -> AsyncGenerator[Chunk]:
    """The answer as it comes; a held one once it is signed off.

    Leaving (by closing or cancelling) while the model works cancels the job. Raises ModelFailed and its kin,
    JobFailed, ReviewPending.
    """
    if not call.joined:
        async for chunk in _ask(desk, call):
            yield chunk
    if call.joined or call.flight.job.policy.may_hold:
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
        settled = await end_record(desk, flight, collect(got))
    except (asyncio.CancelledError, GeneratorExit):
        if not flight.lost:
            await leave_record(desk, flight, call.ask.caller.actor)
            raise
        settled = None
        asyncio.current_task().uncancel()  # pyright: ignore[reportOptionalMemberAccess] -- it was our own cancel
    except Exception as error:
        failure = as_error(error, flight.job)
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
