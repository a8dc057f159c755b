"""Perform: ask the model for a claimed job, and settle it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec
import structlog

from signoff.core import sse
from signoff.core.answer import Answer, Chunk, as_it_came, collect, has_a_known_shape
from signoff.core.endpoints import KNOWN, route_of
from signoff.core.job import Job
from signoff.core.model import is_plain
from signoff.core.tokens import Usage
from signoff.core.upstream_objects import is_new, leaves_nothing, made_by
from signoff.errors import BudgetSpent, LimitReached, ModelFailed, ModelGarbled, Overloaded, SignoffError, Stale
from signoff.runtime.attempt import Asking
from signoff.store import Step
from signoff.work.inference.caching import remember, still_the_same
from signoff.work.inference.metering import columns_of, spent, waste
from signoff.work.inference.reserve import give_back, reserve
from signoff.work.inference.routing import Heard, asked, routed
from signoff.work.inference.settle import settle
from signoff.work.pipelines.run import Parked, run
from signoff.work.services import Desk

MAX_ANSWER_BYTES = 64 * 1024 * 1024
# A job that waits for a limit looks again at least so often: it may have been raised.
LONGEST_PUT_OFF_SECONDS = 300.0
AGAIN_SECONDS = 1.0
SPREAD_SECONDS = 30.0
log = structlog.get_logger()


async def perform(desk: Desk, job: Job) -> None:
    """Asks, and settles. When cancelled, gives the attempt back; when the lease is lost, changes nothing.

    Where a limit leaves no room, the job is due again when there may be some.
    """
    assert job.lease is not None  # noqa: S101 -- a claimed job has one
    lost, task, asking = asyncio.Event(), asyncio.current_task(), Asking()

    def stop() -> None:
        lost.set()
        if task is not None:
            task.cancel()

    with desk.leases.held(job.id, job.lease, stop):
        try:
            await _perform_in_room(desk, job, asking)
        except Parked:
            log.debug("the run waits for a person", job=job.id)
        except asyncio.CancelledError:
            if not lost.is_set():
                await _give_back(desk, job, asking)
                raise
            waste(desk, job, asking)
            if task is not None:
                task.uncancel()
            log.info("the lease was lost; whoever took the job settles it", job=job.id)


async def _perform_in_room(desk: Desk, job: Job, asking: Asking) -> None:
    """The same once there is room under the job's limits; until then it is put off, unless somebody would wait for a
    day to end. A run has its steps wait.
    """
    try:
        room = None if job.pipeline_id is not None else await reserve(desk, job)
    except LimitReached as full:
        if full.retry_after_seconds is None or (job.lane == "now" and isinstance(full, BudgetSpent)):
            await _settle(desk, job, full)
        else:
            await _put_off(desk, job, full.retry_after_seconds)
        return
    except Overloaded:
        await _put_off(desk, job, AGAIN_SECONDS)
        return
    took = None
    try:
        named, outcome = await _outcome(desk, job, asking)
        usage = outcome.usage if isinstance(outcome, Answer) else None
        took = await spent(desk, await still_the_same(desk, named), asking, usage, queued_us=_queued_us(job))
        settled = await _settle(desk, took, outcome)
        if settled is None:
            waste(desk, job, asking, usage)
        else:
            remember(desk, settled)
    finally:
        if room is not None:
            await give_back(desk, room, job, took or await spent(desk, job, asking, None))


async def answer_of(
    desk: Desk, job: Job, *, stream: bool, answers: Heard, since: float | None = None
) -> AsyncIterator[Chunk]:
    """What the job's model says, or its pipeline, in chunks. Raises ModelFailed and its kin, and Parked.

    `answers` hears the name of a model which is another than the job says; `since` is when the asking began, in the
    loop's time.
    """
    if job.pipeline_id is not None:
        yield Chunk((await run(desk, job, perform)).body)
        return
    model = await desk.models.find(job.target)
    if is_plain(model):
        if model.name != job.model:
            answers(model.name)
        chunks = await asked(desk, job, model, job.target, stream=stream)
    else:
        chunks = routed(desk, job, model, stream=stream, answers=answers, since=since)
    size = 0
    try:
        async for chunk in chunks:
            size += len(chunk.raw)
            if size > MAX_ANSWER_BYTES:
                raise ModelGarbled("The model's answer is too large.")
            yield chunk
    except ModelFailed as error:
        desk.logs.add(model.name, "error", error.message)
        raise


def collected(job: Job, chunks: Sequence[Chunk]) -> Answer:
    """The answer, and what it left at its upstream; what was told before took no tokens now. Raises ModelGarbled."""
    if job.path in KNOWN or route_of(job.path) is None or has_a_known_shape(chunks):
        answer = collect(chunks, job.body)
        told = [answer.body]
    else:
        answer = as_it_came(chunks, job.body)
        told = [sse.data_of(chunk.raw) for chunk in reversed(chunks)]
    if leaves_nothing(job.path):
        return answer
    if not is_new(job.path):
        return msgspec.structs.replace(answer, usage=Usage())
    made = next((name for body in told if (name := made_by(job.path, body))), None)
    return msgspec.structs.replace(answer, made=made)


def as_error(error: Exception, job: Job) -> SignoffError:
    """`error` as one that a caller may see; a fault of ours is logged."""
    if isinstance(error, SignoffError):
        return error
    log.error("asking the model failed unexpectedly", job=job.id, exc_info=error)
    return ModelFailed("The model could not be asked, because of a fault in this server; its log says more.")


async def _settle(desk: Desk, job: Job, outcome: Answer | SignoffError) -> Job | None:
    """Settles the job. Its lease ends with that, which is no loss that anybody need hear of."""
    desk.leases.drop(job.id)
    return await settle(desk, job, outcome)


async def _put_off(desk: Desk, job: Job, seconds: float) -> None:
    """Gives the job back until then, with its attempt. All who wait for one limit do not come at one instant."""
    desk.leases.drop(job.id)
    wait = min(seconds, LONGEST_PUT_OFF_SECONDS) + desk.dice() * max(1.0, min(seconds, SPREAD_SECONDS))
    step = Step(verb="release", actor=desk.actor, lease=job.lease, after_seconds={"due_at": wait})
    with contextlib.suppress(Stale):
        await desk.store.jobs.move(job.id, step)


async def _outcome(desk: Desk, job: Job, asking: Asking) -> tuple[Job, Answer | SignoffError]:
    """What came of it, and the job with the model that it came from. A run takes nothing itself. Raises Parked."""
    heard = list[str]()
    if job.pipeline_id is None:
        asking.begin()
    try:
        async for chunk in answer_of(desk, job, stream=asks_for_a_stream(job.body), answers=heard.append):
            asking.take(chunk)
        outcome = collected(job, asking.chunks)
    except Parked:
        raise
    except Exception as error:  # noqa: BLE001 -- whatever it was, the job must learn of it
        outcome = as_error(error, job)
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


async def _give_back(desk: Desk, job: Job, asking: Asking) -> None:
    try:
        await asyncio.shield(desk.background.spawn(_release(desk, job, asking)))
    except Exception as error:  # noqa: BLE001 -- its lease will lapse
        log.warning("could not give a job back", job=job.id, error=repr(error))
    else:
        desk.broker.ring(job.id, job.priority)


async def _release(desk: Desk, job: Job, asking: Asking) -> None:
    took = await spent(desk, job, asking, None)
    step = Step(verb="release", actor=desk.actor, lease=job.lease, changes=columns_of(took))
    await desk.store.jobs.move(job.id, step)
