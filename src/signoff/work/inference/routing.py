"""Route: the job's model is asked where it is free, then elsewhere, then other models, until the first byte came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import structlog

from signoff.core.answer import Chunk
from signoff.core.ask import as_chat, path_for
from signoff.core.balance import may_succeed_elsewhere, prefix_key
from signoff.core.endpoints import CHAT, EDITS
from signoff.core.job import Job
from signoff.core.model import KINDS_WITH_KEYS, Model, accepts_any_json, endpoints_of
from signoff.engine import ModelRequest
from signoff.errors import ModelAnswered, ModelDown, ModelFailed, ModelNotFound, ModelTimedOut, SignoffError
from signoff.runtime.pools import Endpoint, EndpointPool, Slot, endpoint_name
from signoff.work.inference.edits import run_edit
from signoff.work.services import Services

# With the fallbacks of fallbacks.
MOST_MODELS = 8
# What passes between the two looks at the clock.
SLACK_SECONDS = 0.01
OnModel = Callable[[str], None]
log = structlog.get_logger()


async def route(
    services: Services, job: Job, model: Model, *, stream: bool, answers: OnModel, since: float | None
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
    async for each, name in _candidates(services, job, model):
        began = False
        try:
            async with aclosing(_try_endpoints(services, job, each, name, stream=stream, deadline=deadline)) as chunks:
                async for chunk in chunks:
                    if not began and each.name != job.model:
                        answers(name if each.name.endswith("*") else each.name)
                    began = True
                    yield chunk
        except SignoffError as error:
            failure = failure or error
            if began or not may_succeed_elsewhere(error) or asyncio.get_running_loop().time() >= deadline:
                raise
        else:
            return
    if isinstance(failure, ModelDown):
        returns_at = asyncio.get_running_loop().time() + (failure.retry_after_seconds or 0)
        failure.is_final = returns_at >= deadline
    if failure is not None:
        raise failure


async def _candidates(services: Services, job: Job, model: Model) -> AsyncIterator[tuple[Model, str]]:
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
            other = await services.caches.models.find(name)
        except ModelNotFound:
            log.warning("a fallback does not exist", model=model.name, fallback=name)
            continue
        if other.review == "always" and not job.policy.may_hold:
            log.warning("a fallback is not asked: its answers need a review", model=model.name, fallback=name)
            continue
        yield other, name
        line.extend(other.fallbacks)


async def _try_endpoints(
    services: Services, job: Job, model: Model, name: str, *, stream: bool, deadline: float
) -> AsyncGenerator[Chunk]:
    """What the first endpoint says that says anything, each asked once at most."""
    pool = services.runtime.pools.of(model)
    key = prefix_key(name, job.body) if model.balance == "prefix-hash" else None
    tried, failure = frozenset[Endpoint](), None
    while True:
        try:
            slot = await pool.acquire(key, tried, deadline)
        except SignoffError as error:
            raise _final_error(pool, failure, error) from failure
        began = False
        with slot:
            try:
                async with aclosing(
                    _ask_endpoint(services, job, slot, name, stream=stream, deadline=deadline)
                ) as chunks:
                    async for chunk in chunks:
                        if not began:
                            slot.succeeded()
                        began = True
                        yield chunk
            except SignoffError as error:
                if not began:
                    slot.failed(error)
                if began or not may_succeed_elsewhere(error) or asyncio.get_running_loop().time() >= deadline:
                    raise
                failure, tried = error, tried | {slot.endpoint}
                services.runtime.logs.add(model.name, "error", f"{endpoint_name(slot.endpoint.model)}: {error.message}")
            else:
                return


async def _ask_endpoint(
    services: Services, job: Job, slot: Slot, name: str, *, stream: bool, deadline: float
) -> AsyncGenerator[Chunk]:
    """What that endpoint says, cut off at the deadline."""
    model = slot.endpoint.model
    chunks = await ask_model(services, job, model, name, stream=stream)
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


def _final_error(pool: EndpointPool, failure: SignoffError | None, error: SignoffError) -> SignoffError:
    """What the caller is told when nobody else can be asked: an endpoint's own answer, else that the model is down."""
    if failure is None or not isinstance(error, ModelDown):
        return error
    down = pool.unavailable_error(f"No endpoint of the model {pool.model.name} answers: {failure.message}")
    if isinstance(failure, ModelAnswered):
        failure.retry_after_seconds = down.retry_after_seconds or failure.retry_after_seconds
        return failure
    return down if pool.is_many else failure


async def ask_model(services: Services, job: Job, model: Model, name: str, *, stream: bool) -> AsyncIterator[Chunk]:
    """What one model says at one place, where it is asked for by `name`."""
    engine = services.adapters.engines.get(model.kind)
    if engine is None:
        raise ModelFailed(f"This server cannot run models of the kind {model.kind}.")
    path = path_for(model, job.path, job.body)
    body = as_chat(job.body) if path == CHAT and not accepts_any_json(model) else job.body
    key = await _upstream_key(services, job, model, name)
    request = ModelRequest(path=path, body=body, target=name, stream=stream, key=key)
    return run_edit(engine, model, request) if job.path == EDITS else engine.answer(model, request)


async def _upstream_key(services: Services, job: Job, model: Model, name: str) -> str | None:
    """The key that the job's caller chose, else that of the model at this place. Raises ModelFailed when it is gone."""
    if job.key_id is not None and name == job.target and model.kind in KINDS_WITH_KEYS:  # and not where a fallback is
        secret = await services.caches.keys.secret(job.key_id)
        if secret is None:
            raise ModelFailed(f"The upstream key {job.key_id}, which this request was to be sent with, was removed.")
        return secret
    if model.key_id is None:
        return None
    secret = await services.caches.keys.secret(model.key_id)
    if secret is not None:
        return secret
    services.caches.models.invalidate()  # it was replaced a moment ago
    for each in endpoints_of(await services.caches.models.find(name)):
        if (each.url, each.upstream_model) == (model.url, model.upstream_model):
            secret = None if each.key_id is None else await services.caches.keys.secret(each.key_id)
            if each.key_id is None or secret is not None:
                return secret
    raise ModelFailed(f"The key of the model {model.name} is gone.")
