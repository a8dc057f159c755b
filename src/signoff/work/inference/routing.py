"""Routing: call the endpoints of the job's model in turn, then its fallbacks, until the first chunk has come."""

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

# Fallbacks of one request, those of fallbacks included.
MAX_FALLBACKS = 8
# The time between two readings of the clock.
SLACK_SECONDS = 0.01
OnModel = Callable[[str], None]
log = structlog.get_logger()


async def route(
    services: Services, job: Job, model: Model, *, stream: bool, on_model: OnModel, started_at: float | None
) -> AsyncGenerator[Chunk]:
    """Yield the chunks of the answer of `model` or of a fallback.

    All attempts and waits together take no longer than the model's `total_seconds`. Raises ModelFailed or a subclass.

    Args:
        services: The dependencies.
        job: The job.
        model: The model of the job.
        stream: Ask for a stream.
        on_model: Called with the name of a model other than the job's, before its first chunk.
        started_at: Start of that time by the loop's clock, in seconds; None for now.
    """
    now = asyncio.get_running_loop().time()
    deadline = (now if started_at is None else started_at) + model.timeouts.total_seconds
    if now >= deadline:
        raise _timeout_error(model)
    failure: SignoffError | None = None
    async for each, name in _candidates(services, job, model):
        began = False
        try:
            async with aclosing(_try_endpoints(services, job, each, name, stream=stream, deadline=deadline)) as chunks:
                async for chunk in chunks:
                    if not began and each.name != job.model:
                        on_model(name if each.name.endswith("*") else each.name)
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
    """Yield the model with the name that it was requested by, then its fallbacks and theirs, each once.

    A model whose answers need a review is no fallback for a job that cannot be held.
    """
    yield model, job.target
    visited, queue, remaining = {job.target, model.name}, [*model.fallbacks], MAX_FALLBACKS
    while queue and remaining:
        name = queue.pop(0)
        if name in visited:
            continue
        visited.add(name)
        remaining -= 1
        try:
            other = await services.caches.models.find(name)
        except ModelNotFound:
            log.warning("fallback_not_found", model=model.name, fallback=name)
            continue
        if other.review == "always" and not job.policy.may_hold:
            log.warning("fallback_skipped_for_review", model=model.name, fallback=name)
            continue
        yield other, name
        queue.extend(other.fallbacks)


async def _try_endpoints(
    services: Services, job: Job, model: Model, name: str, *, stream: bool, deadline: float
) -> AsyncGenerator[Chunk]:
    """Yield the chunks of the first endpoint that answers; try each endpoint at most once."""
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
                    _call_endpoint(services, job, slot, name, stream=stream, deadline=deadline)
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


async def _call_endpoint(
    services: Services, job: Job, slot: Slot, name: str, *, stream: bool, deadline: float
) -> AsyncGenerator[Chunk]:
    """Yield the chunks of the endpoint of `slot`, until the deadline."""
    model = slot.endpoint.model
    chunks = await ask_model(services, job, model, name, stream=stream)
    try:
        if asyncio.get_running_loop().time() + model.timeouts.total_seconds <= deadline + SLACK_SECONDS:
            async for chunk in chunks:  # the engine's own timeout ends in time
                yield chunk
            return
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise _timeout_error(model) from None
            yield chunk
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def _timeout_error(model: Model) -> ModelTimedOut:
    return ModelTimedOut(f"The model took more than {model.timeouts.total_seconds:g} s.")


def _final_error(pool: EndpointPool, failure: SignoffError | None, error: SignoffError) -> SignoffError:
    """Return the error when no endpoint is left: the last endpoint's answer, else that the model is down."""
    if failure is None or not isinstance(error, ModelDown):
        return error
    down = pool.unavailable_error(f"No endpoint of the model {pool.model.name} answers: {failure.message}")
    if isinstance(failure, ModelAnswered):
        failure.retry_after_seconds = down.retry_after_seconds or failure.retry_after_seconds
        return failure
    return down if pool.is_many else failure


async def ask_model(services: Services, job: Job, model: Model, name: str, *, stream: bool) -> AsyncIterator[Chunk]:
    """Return the chunks of the answer of one endpoint of a model, which was requested as `name`.

    Raises ModelFailed if this server cannot run such models, or the upstream key is missing.
    """
    engine = services.adapters.engines.get(model.kind)
    if engine is None:
        raise ModelFailed(f"This server cannot run models of kind {model.kind!r}.")
    path = path_for(model, job.path, job.body)
    body = as_chat(job.body) if path == CHAT and not accepts_any_json(model) else job.body
    key = await _upstream_key(services, job, model, name)
    request = ModelRequest(path=path, body=body, target=name, stream=stream, key=key)
    return run_edit(engine, model, request) if job.path == EDITS else engine.answer(model, request)


async def _upstream_key(services: Services, job: Job, model: Model, name: str) -> str | None:
    """Return the key that the caller chose, else that of the endpoint; None without one.

    Raises ModelFailed if it was removed.
    """
    # The key is for the upstream of the target, so a fallback must not get it.
    if job.key_id is not None and name == job.target and model.kind in KINDS_WITH_KEYS:
        secret = await services.caches.keys.secret(job.key_id)
        if secret is None:
            raise ModelFailed(f"The upstream key {job.key_id} of this request was removed; use another key.")
        return secret
    if model.key_id is None:
        return None
    secret = await services.caches.keys.secret(model.key_id)
    if secret is not None:
        return secret
    services.caches.models.invalidate()  # the key may have been replaced a moment ago
    for each in endpoints_of(await services.caches.models.find(name)):
        if (each.url, each.upstream_model) == (model.url, model.upstream_model):
            secret = None if each.key_id is None else await services.caches.keys.secret(each.key_id)
            if each.key_id is None or secret is not None:
                return secret
    raise ModelFailed(f"The upstream key of the model {model.name} was removed; an admin must set a new one.")
