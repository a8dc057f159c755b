"""Routing: ask the endpoints of the job's model in turn, then its fallbacks, until an answer has begun."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import structlog

from signoff.core.api_paths import CHAT, COUNT_TOKENS, IN_WORDS, KNOWN, MESSAGES, RESPONSES
from signoff.core.ask import as_chat, path_for
from signoff.core.balance import UNKNOWN_MODEL_CODES, is_refusal, may_succeed_elsewhere, prefix_key
from signoff.core.dialects.responses_to_chat import check_self_contained
from signoff.core.job import Job
from signoff.core.model import (
    KINDS_WITH_KEYS,
    PERSON,
    Model,
    accepts_any_json,
    endpoints_of,
    needs_no_pool,
    registered_name,
)
from signoff.core.redact import mask_keys
from signoff.core.reviews.logprobs import with_logprobs
from signoff.engine import Engine, ModelRequest
from signoff.errors import (
    BadRequest,
    ModelAnswered,
    ModelDown,
    ModelFailed,
    ModelGarbled,
    ModelNotFound,
    ModelTimedOut,
    SignoffError,
)
from signoff.runtime.attempt import Attempt
from signoff.runtime.pools import Endpoint, EndpointPool, endpoint_name
from signoff.work.inference.headers import upstream_headers
from signoff.work.inference.translate import ask_engine, estimated_count
from signoff.work.reviews.policies import may_stand_in, needs_logprobs
from signoff.work.services import Services
from signoff.work.tracing import traced_call, usage_attributes

# Largest number of fallbacks for one request, with the fallbacks of fallbacks.
MAX_FALLBACKS = 8
NO_ROUTE = {404, 405}
# Statuses with which servers refuse a parameter.
REFUSED_REQUEST = {400, 422}
NAMED_ROUTES = KNOWN - {MESSAGES, COUNT_TOKENS}
# Tolerance for the time between two readings of the clock.
SLACK_SECONDS = 0.01
log = structlog.get_logger()


async def ask_model(services: Services, attempt: Attempt) -> None:
    """Ask the model of the attempt's job, or a fallback of it; the attempt gets the answer.

    All tries and waits together take no longer than the model's `total_seconds` since the attempt began. Raises
    ModelFailed or a subclass.
    """
    model = await services.caches.models.find(attempt.job.target)
    try:
        if needs_no_pool(model):
            await _ask_endpoint(services, attempt, model, attempt.job.target)
        else:
            await _ask_candidates(services, attempt, model)
    except ModelFailed as error:
        services.runtime.logs.add(model.name, "error", error.message)
        raise


async def _ask_candidates(services: Services, attempt: Attempt, model: Model) -> None:
    """Ask the model and its fallbacks, until an answer has begun or no candidate may help."""
    deadline = attempt.arrived_at + model.timeouts.total_seconds
    if _has_passed(deadline):
        raise _timeout_error(model)
    failure: SignoffError | None = None
    try:
        async for candidate, name in _candidates(services, attempt.job, model):
            try:
                await _ask_endpoints(services, attempt, candidate, name, deadline)
            except SignoffError as error:
                failure = failure or error
                if attempt.has_begun or not may_succeed_elsewhere(error) or _has_passed(deadline):
                    raise
            else:
                return
    finally:
        attempt.attribute_refusals()
    if isinstance(failure, ModelDown):
        failure.is_final = _has_passed(deadline - (failure.retry_after_seconds or 0))
    if failure is not None:
        raise failure


async def _candidates(services: Services, job: Job, model: Model) -> AsyncIterator[tuple[Model, str]]:
    """Yield the model with the name that it was requested by, then its fallbacks and theirs, each once.

    A model whose answers need a review is no fallback for a job that cannot be held; a person is one for every job.
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
        if other.kind == PERSON:  # the job is held then, though its policy could not hold it before
            yield other, name
            continue
        if not job.policy.may_hold and (other.review == "always" or not await may_stand_in(services, job, name)):
            log.warning("fallback_skipped_for_review", model=model.name, fallback=name)
            continue
        yield other, name
        queue.extend(other.fallbacks)


async def _ask_endpoints(services: Services, attempt: Attempt, model: Model, name: str, deadline: float) -> None:
    """Ask the endpoints of `model`, which was requested as `name`, until one answers; ask each at most once."""
    pool = services.runtime.pools.of(model)
    key = prefix_key(name, attempt.job.body) if model.balance == "prefix-hash" else None
    tried, failure = frozenset[Endpoint](), None
    while True:
        try:
            slot = await pool.acquire(key, tried, deadline)
        except SignoffError as error:
            raise _final_error(pool, failure, error) from failure
        with slot:
            attempt.slot = slot
            try:
                await _ask_until(services, attempt, slot.endpoint.model, name, deadline)
            except SignoffError as error:
                if not attempt.has_begun and is_refusal(error):
                    attempt.refusals.append((slot, error))
                elif not attempt.has_begun:
                    slot.failed(error)
                if attempt.has_begun or not may_succeed_elsewhere(error) or _has_passed(deadline):
                    raise
                failure, tried = error, tried | {slot.endpoint}
                services.runtime.logs.add(model.name, "error", f"{endpoint_name(slot.endpoint.model)}: {error.message}")
            else:
                return
            finally:
                attempt.slot = None


async def _ask_until(services: Services, attempt: Attempt, model: Model, name: str, deadline: float) -> None:
    """Ask one endpoint, until the deadline."""
    engine_ends_at = asyncio.get_running_loop().time() + model.timeouts.total_seconds
    if engine_ends_at <= deadline + SLACK_SECONDS:  # the engine's own timeout ends in time
        await _ask_endpoint(services, attempt, model, name)
        return
    timeout = asyncio.timeout_at(deadline)
    try:
        async with timeout:
            await _ask_endpoint(services, attempt, model, name)
    except TimeoutError:
        if not timeout.expired():
            raise
        raise _timeout_error(model) from None


async def _ask_endpoint(services: Services, attempt: Attempt, model: Model, name: str) -> None:
    """Ask one endpoint of `model`, which was requested as `name`.

    Raises ModelFailed if this server cannot run such models, or the upstream key is missing.
    """
    if model.kind == PERSON:
        _ask_person(attempt, model, name)
        return
    engine = services.adapters.engines.get(model.kind)
    if engine is None:
        raise ModelFailed(f"This server cannot run models of kind {model.kind!r}.")
    job = attempt.job
    path = path_for(model, job.path, job.body)
    body = as_chat(job.body) if path == CHAT and not accepts_any_json(model) else job.body
    key = await _upstream_key(services, job, model, name)
    request = ModelRequest(
        path=path,
        body=body,
        target=name,
        stream=attempt.stream,
        key=key,
        headers=upstream_headers(services, job, model),
        response_headers=attempt.upstream_headers,
    )
    attempt.model = name if model.name.endswith("*") and model.name != job.model else model.name
    attempt.discard()  # what came before the failure of another endpoint
    try:
        answer = await _ask_traced(services, engine, model, request, attempt)
    except ModelFailed as error:
        _redact(error, key)
        if isinstance(error, ModelAnswered):
            _name_route(error, model, path)
            if _is_callers_key(job, model, name):
                error.is_account_fault = False  # it is the caller's own account
        raise
    if answer is not None:
        attempt.take(answer)
    elif not attempt.events and (path in KNOWN or not request.stream):
        raise ModelGarbled(f"The model {model.name} sent no answer.")


async def _ask_traced(
    services: Services, engine: Engine, model: Model, request: ModelRequest, attempt: Attempt
) -> bytes | None:
    """Ask the engine, in a span of its own if this process has a tracer."""
    tracer = services.runtime.tracer
    if tracer is None:
        return await _ask_with_logprobs(services, engine, model, request, attempt)
    with traced_call(tracer, attempt, model, request) as (span, traced_request):
        answer = await _ask_with_logprobs(services, engine, model, traced_request, attempt)
        span.set(usage_attributes(attempt, answer))
        return answer


async def _ask_with_logprobs(
    services: Services, engine: Engine, model: Model, request: ModelRequest, attempt: Attempt
) -> bytes | None:
    """Ask the engine; if a policy reads log-probabilities, ask for them too, unless the upstream refuses that."""
    attempt.wants_logprobs, attempt.translated_logprobs, attempt.has_asked_for_logprobs = False, None, False
    if not attempt.job.policy.is_judged or not await needs_logprobs(services, attempt.job):
        return await ask_engine(services, engine, model, request, attempt)
    extended_body, attempt.translated_logprobs = with_logprobs(request.path, request.body), []
    attempt.wants_logprobs = extended_body is not None
    try:
        extended = msgspec.structs.replace(request, body=extended_body or request.body)
        return await ask_engine(services, engine, model, extended, attempt)
    except ModelAnswered as error:
        has_asked = attempt.wants_logprobs or attempt.has_asked_for_logprobs
        if attempt.has_begun or not has_asked or error.status not in REFUSED_REQUEST:
            raise
    attempt.discard()
    attempt.translated_logprobs = None
    return await ask_engine(services, engine, model, request, attempt)


def _ask_person(attempt: Attempt, model: Model, name: str) -> None:
    """Leave the answer to a person; only the number of tokens of a message is estimated here at once.

    Raises BadRequest for a request that a person cannot answer in words, or that refers to objects of an upstream.
    """
    job = attempt.job
    path = path_for(model, job.path, job.body)
    attempt.model = name if model.name.endswith("*") and model.name != job.model else model.name
    attempt.discard()
    if path == COUNT_TOKENS:
        attempt.take(estimated_count(job.body))
        return
    if path not in IN_WORDS:
        raise BadRequest(f"The model {model.name} is a person, who answers in words; it does not serve {path}.")
    if path == RESPONSES:
        check_self_contained(job.body)
    attempt.pass_to_person(model.review_queue)


def _name_route(error: ModelAnswered, model: Model, path: str) -> None:
    """Name the model and the route in the error of a server without the route: many say "Not Found" alone.

    An error in Anthropic's format is complete.
    """
    if error.status in NO_ROUTE and path in NAMED_ROUTES and not error.codes & UNKNOWN_MODEL_CODES:
        name = registered_name(model.name)
        error.message = f"The model {name} answered status {error.status} to {path}: {error.message}"
        error.body = b""


def _redact(error: ModelFailed, key: str | None) -> None:
    """Remove keys from an error: upstreams quote the key that they refuse."""
    error.message = mask_keys(error.message, key)
    if isinstance(error, ModelAnswered) and error.body:
        error.body = mask_keys(error.body.decode(errors="surrogateescape"), key).encode(errors="surrogateescape")


def _has_passed(deadline: float) -> bool:
    return asyncio.get_running_loop().time() >= deadline


def _timeout_error(model: Model) -> ModelTimedOut:
    return ModelTimedOut(f"The model {model.timeouts.fault('total_seconds')}.")


def _final_error(pool: EndpointPool, failure: SignoffError | None, error: SignoffError) -> SignoffError:
    """Return the error when no endpoint is left: the last endpoint's answer, else that the model is down."""
    if failure is None or not isinstance(error, ModelDown):
        return error
    down = pool.unavailable_error(f"No endpoint of the model {pool.model.name} answers: {failure.message}")
    if isinstance(failure, ModelAnswered):
        failure.retry_after_seconds = down.retry_after_seconds or failure.retry_after_seconds
        return failure
    return down if pool.is_many else failure


def _is_callers_key(job: Job, model: Model, name: str) -> bool:
    """Return True if `model`, which was requested as `name`, gets the key that the caller chose.

    The key is for the upstream of the target, so a fallback must not get it.
    """
    return job.key_id is not None and name == job.target and model.kind in KINDS_WITH_KEYS


async def _upstream_key(services: Services, job: Job, model: Model, name: str) -> str | None:
    """Return the key that the caller chose, else that of the endpoint; None without one.

    Raises ModelFailed if it was removed.
    """
    if job.key_id is not None and _is_callers_key(job, model, name):
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
