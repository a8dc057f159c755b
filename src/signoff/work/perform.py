"""Perform: ask the model for a claimed job, and settle it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import structlog

from signoff.core.answer import Answer, Chunk, collect
from signoff.core.ask import as_chat, path_for
from signoff.core.endpoint import CHAT, EDITS
from signoff.core.job import Job
from signoff.core.target import takes_any_json
from signoff.engine import Request
from signoff.errors import ModelFailed, ModelGarbled, SignoffError
from signoff.store import Step
from signoff.work.desk import Desk
from signoff.work.edit import edited
from signoff.work.settle import settle

MAX_ANSWER_BYTES = 64 * 1024 * 1024
log = structlog.get_logger()


async def perform(desk: Desk, job: Job) -> None:
    """Asks, and settles. When cancelled, gives the attempt back; when the lease is lost, changes nothing."""
    assert job.lease is not None  # noqa: S101 -- a claimed job has one
    lost, task = asyncio.Event(), asyncio.current_task()

    def stop() -> None:
        lost.set()
        if task is not None:
            task.cancel()

    with desk.leases.held(job.id, job.lease, stop):
        try:
            outcome = await _outcome(desk, job)
            await settle(desk, job, outcome)
        except asyncio.CancelledError:
            if not lost.is_set():
                await _give_back(desk, job)
                raise
            log.info("the lease was lost; whoever took the job settles it", job=job.id)


async def answer_of(desk: Desk, job: Job, *, stream: bool) -> AsyncIterator[Chunk]:
    """What the job's model says, in chunks. Raises ModelFailed and its kin."""
    model = await desk.models.find(job.target)
    engine = desk.engines.get(model.kind)
    if engine is None:
        raise ModelFailed(f"This server cannot run models of the kind {model.kind}.")
    path = path_for(model, job.path, job.body)
    body = as_chat(job.body) if path == CHAT and not takes_any_json(model) else job.body
    request = Request(
        path=path, body=body, target=job.target, stream=stream, key=await _upstream_key(desk, model.key_id)
    )
    chunks = edited(engine, model, request) if job.path == EDITS else engine.answer(model, request)
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


def as_error(error: Exception, job: Job) -> SignoffError:
    """`error` as one that a caller may see; a fault of ours is logged."""
    if isinstance(error, SignoffError):
        return error
    log.error("asking the model failed unexpectedly", job=job.id, exc_info=error)
    return ModelFailed("The model could not be asked, because of a fault in this server; its log says more.")


async def _outcome(desk: Desk, job: Job) -> Answer | SignoffError:
    try:
        chunks = [chunk async for chunk in answer_of(desk, job, stream=asks_for_a_stream(job.body))]
        return collect(chunks, job.body)
    except Exception as error:  # noqa: BLE001 -- whatever it was, the job must learn of it
        return as_error(error, job)


class _Peek(msgspec.Struct):
    stream: bool = False


def asks_for_a_stream(body: bytes) -> bool:
    """Whether `body` says `"stream": true`."""
    try:
        return msgspec.json.decode(body, type=_Peek).stream
    except (ValueError, RecursionError):
        return False


async def _upstream_key(desk: Desk, key_id: int | None) -> str | None:
    if key_id is None:
        return None
    sealed = await desk.store.catalog.key(key_id)
    return None if sealed is None else desk.vault.open(sealed)


async def _give_back(desk: Desk, job: Job) -> None:
    step = Step(verb="release", actor=desk.actor, lease=job.lease)
    try:
        await asyncio.shield(desk.background.spawn(desk.store.jobs.move(job.id, step)))
    except Exception as error:  # noqa: BLE001 -- its lease will lapse
        log.warning("could not give a job back", job=job.id, error=repr(error))
    else:
        desk.broker.ring(job.id, job.priority)
