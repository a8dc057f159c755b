"""Route: the job's model is asked where it is free, then elsewhere, then other models, until the first byte came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import structlog

from signoff.core.answer import Chunk
from signoff.core.ask import as_chat, path_for
from signoff.core.balance import helps_elsewhere, prefix_key
from signoff.core.endpoints import CHAT, EDITS
from signoff.core.job import Job
from signoff.core.model import TAKE_KEYS, Model, endpoints_of, takes_any_json
from signoff.engine import Request
from signoff.errors import ModelAnswered, ModelDown, ModelFailed, ModelNotFound, ModelTimedOut, SignoffError
from signoff.runtime.pools import Pool, Seat, Spot, spot_name
from signoff.work.inference.edits import edited
from signoff.work.services import Desk

# With the fallbacks of fallbacks.
MOST_MODELS = 8
# What passes between the two looks at the clock.
SLACK_SECONDS = 0.01
Heard = Callable[[str], None]
log = structlog.get_logger()


async def routed(
    desk: Desk, job: Job, model: Model, *, stream: bool, answers: Heard, since: float | None
) -> AsyncGenerator[Chunk]:
    """What the model says, or a fallback of it; `answers` hears which one, before its first chunk.

    All tries and all waits together take no longer than the model's total, from `since` on, where the loop's time
    is given. Raises ModelFailed and its kin.
    """
    now = asyncio.get_running_loop().time()
    deadline = (now if since is None else since) + model.timeouts.total_seconds
    if now >= deadline:
        raise _out_of_time(model)
    failure: SignoffError | None = None
    async for each, name in _in_turn(desk, job, model):
        began = False
        try:
            async with aclosing(_at_endpoints(desk, job, each, name, stream=stream, deadline=deadline)) as chunks:
                async for chunk in chunks:
                    if not began and each.name != job.model:
                        answers(name if each.name.endswith("*") else each.name)
                    began = True
                    yield chunk
        except SignoffError as error:
            failure = failure or error
            if began or not helps_elsewhere(error) or asyncio.get_running_loop().time() >= deadline:
                raise
        else:
            return
    if isinstance(failure, ModelDown):
        returns_at = asyncio.get_running_loop().time() + (failure.retry_after_seconds or 0)
        failure.is_final = returns_at >= deadline
    if failure is not None:
        raise failure


async def _in_turn(desk: Desk, job: Job, model: Model) -> AsyncIterator[tuple[Model, str]]:
    """The model and the name that it was asked for by; its fallbacks, then theirs, each once.

    One whose answers a person must see stands in for none whose answers leave unseen.
    """
    yield model, job.target
    seen, line, left = {job.target, model.name}, [*model.fallbacks], MOST_MODELS
    while line and left:
        name = line.pop(0)
        if name in seen:
            continue
        seen.add(name)
        left -= 1
        try:
            other = await desk.models.find(name)
        except ModelNotFound:
            log.warning("a fallback does not exist", model=model.name, fallback=name)
            continue
        if other.review == "always" and not job.policy.may_hold:
            log.warning("a fallback is not asked: its answers need a review", model=model.name, fallback=name)
            continue
        yield other, name
        line.extend(other.fallbacks)


async def _at_endpoints(
    desk: Desk, job: Job, model: Model, name: str, *, stream: bool, deadline: float
) -> AsyncGenerator[Chunk]:
    """What the first endpoint says that says anything, each asked once at most."""
    pool = desk.pools.of(model)
    key = prefix_key(name, job.body) if model.balance == "prefix-hash" else None
    tried, failure = frozenset[Spot](), None
    while True:
        try:
            seat = await pool.seat(key, tried, deadline)
        except SignoffError as error:
            raise _told(pool, failure, error) from failure
        began = False
        with seat:
            try:
                async with aclosing(_in_seat(desk, job, seat, name, stream=stream, deadline=deadline)) as chunks:
                    async for chunk in chunks:
                        if not began:
                            seat.well()
                        began = True
                        yield chunk
            except SignoffError as error:
                if not began:
                    seat.failed(error)
                if began or not helps_elsewhere(error) or asyncio.get_running_loop().time() >= deadline:
                    raise
                failure, tried = error, tried | {seat.spot}
                desk.logs.add(model.name, "error", f"{spot_name(seat.spot.model)}: {error.message}")
            else:
                return


async def _in_seat(
    desk: Desk, job: Job, seat: Seat, name: str, *, stream: bool, deadline: float
) -> AsyncGenerator[Chunk]:
    """What that endpoint says, cut off at the deadline."""
    model = seat.spot.model
    chunks = await asked(desk, job, model, name, stream=stream)
    try:
        if asyncio.get_running_loop().time() + model.timeouts.total_seconds <= deadline + SLACK_SECONDS:
            async for chunk in chunks:  # the engine's own limit comes as early
                yield chunk
            return
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise _out_of_time(model) from None
            yield chunk
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def _out_of_time(model: Model) -> ModelTimedOut:
    return ModelTimedOut(f"The model took more than {model.timeouts.total_seconds:g} s.")


def _told(pool: Pool, failure: SignoffError | None, error: SignoffError) -> SignoffError:
    """What the caller is told when nobody else can be asked: an endpoint's own answer, else that the model is down."""
    if failure is None or not isinstance(error, ModelDown):
        return error
    down = pool.down(f"No endpoint of the model {pool.model.name} answers: {failure.message}")
    if isinstance(failure, ModelAnswered):
        failure.retry_after_seconds = down.retry_after_seconds or failure.retry_after_seconds
        return failure
    return down if pool.is_many else failure


async def asked(desk: Desk, job: Job, model: Model, name: str, *, stream: bool) -> AsyncIterator[Chunk]:
    """What one model says at one place, where it is asked for by `name`."""
    engine = desk.engines.get(model.kind)
    if engine is None:
        raise ModelFailed(f"This server cannot run models of the kind {model.kind}.")
    path = path_for(model, job.path, job.body)
    body = as_chat(job.body) if path == CHAT and not takes_any_json(model) else job.body
    key = await _upstream_key(desk, job, model, name)
    request = Request(path=path, body=body, target=name, stream=stream, key=key)
    return edited(engine, model, request) if job.path == EDITS else engine.answer(model, request)


async def _upstream_key(desk: Desk, job: Job, model: Model, name: str) -> str | None:
    """The key that the job's caller chose, else that of the model at this place. Raises ModelFailed when it is gone."""
    if job.key_id is not None and name == job.target and model.kind in TAKE_KEYS:  # and not where a fallback is
        secret = await desk.keys.secret(job.key_id)
        if secret is None:
            raise ModelFailed(f"The upstream key {job.key_id}, which this request was to be sent with, was removed.")
        return secret
    if model.key_id is None:
        return None
    secret = await desk.keys.secret(model.key_id)
    if secret is not None:
        return secret
    desk.models.forget()  # it was replaced a moment ago
    for each in endpoints_of(await desk.models.find(name)):
        if (each.url, each.upstream_model) == (model.url, model.upstream_model):
            secret = None if each.key_id is None else await desk.keys.secret(each.key_id)
            if each.key_id is None or secret is not None:
                return secret
    raise ModelFailed(f"The key of the model {model.name} is gone.")
