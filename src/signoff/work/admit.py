"""Admission: build the job of a request, once the request, its target and the caller's rights have been checked."""

import re

import msgspec

from signoff.core.access import Caller
from signoff.core.api_paths import CHAT, COUNT_TOKENS, KNOWN, MESSAGES, PREDICT, parse_route
from signoff.core.ask import MAX_KEY_LENGTH, Ask, check_idempotency_key, path_for
from signoff.core.cache import CacheState, Sampling
from signoff.core.dialects.required_members import missing_member
from signoff.core.fingerprint import fingerprint
from signoff.core.headers import comparable_headers
from signoff.core.job import PRIORITIES, Job
from signoff.core.members import read_members
from signoff.core.model import Model, accepts_any_json
from signoff.core.pipelines.arguments import parse_arguments
from signoff.core.pipelines.check import parameter_names
from signoff.core.pipelines.composed import Pipeline, Prompt
from signoff.core.pipelines.render import render_request
from signoff.core.reviews.policy import policy_for, review_for
from signoff.core.reviews.request_values import RequestContext
from signoff.core.upstream_objects import is_creation, is_stateless
from signoff.errors import BadBody, BadRequest, Forbidden, MissingParameter, NotFound
from signoff.work.admin.keys import key_of_user
from signoff.work.inference.caching import cache_key_for
from signoff.work.inference.headers import requested_headers
from signoff.work.inference.ownership import NO_REFERENCES, References, find_references, hold_objects, storing_model
from signoff.work.inference.resolve import resolve_target
from signoff.work.jobs.deliver import delivery_targets
from signoff.work.reviews.policies import PolicyAdmission, govern
from signoff.work.services import Services
from signoff.work.tracing import carry_trace

# The form of this server's ids. Under a `job_id` of this form, a result in Redis could replace that of another job.
JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


async def admit(services: Services, ask: Ask) -> Job:
    """Return the job of `ask`, which is not stored yet.

    Raises:
        BadRequest: a field or the body is invalid.
        AddressRefused: the webhook's address may not be reached.
        Forbidden: the route, or a list of the objects of all callers at the upstream, is for admins.
        NotFound: the target, the upstream key or an object that the request names does not exist for this caller.
    """
    job = carry_trace(services, await _admitted_job(services, ask))
    services.runtime.metrics.admitted(job)
    return job


async def _admitted_job(services: Services, ask: Ask) -> Job:
    sampling = _check_ask(ask)
    if ask.key_id is not None:
        await key_of_user(services, ask.caller.user_id, ask.key_id)
    if ask.pipeline is not None:
        return await _pipeline_job(services, ask, ask.pipeline)
    references = (
        NO_REFERENCES if is_stateless(ask.path) else await find_references(services, ask.caller, ask.path, ask.body)
    )
    if references.subject is not None:
        ask = msgspec.structs.replace(ask, target=storing_model(references.subject))
    # The usual case: a model of exactly this name needs no look-up of prompts and pipelines.
    if ask.target is None or services.caches.models.has_exact(ask.target):
        return await _model_job(services, ask, await services.caches.models.find(ask.target), sampling, references)
    target = await resolve_target(services, ask.caller, ask.target)
    if isinstance(target, Model):
        return await _model_job(services, ask, target, sampling, references)
    if isinstance(target, Prompt):
        return await _prompt_job(services, ask, target, references)
    return await _pipeline_job(services, ask, target)


async def _pipeline_job(services: Services, ask: Ask, pipeline: Pipeline) -> Job:
    """Return a run of `pipeline`. A run has no cache key, as functions may depend on the time. Raises BadRequest."""
    if ask.path not in {CHAT, MESSAGES, PREDICT}:
        raise BadRequest(f"{pipeline.name!r} is a pipeline; send the request to {CHAT} or {MESSAGES} (got {ask.path}).")
    parse_arguments(ask.body, parameter_names(pipeline))
    policy = policy_for(None, ask.door_review, services.rules.policy)
    governed = await govern(services, _context(ask, pipeline, ask.path), policy)
    job = _new_job(services, ask, pipeline, governed, path=ask.path, cache_key=None)
    return msgspec.structs.replace(
        job,
        pipeline_id=pipeline.id,
        pipeline_version=pipeline.version,
        fingerprint=_fingerprint(ask),
        cache=_step_cache_state(ask),
    )


def _step_cache_state(ask: Ask) -> CacheState | None:
    """Return how the steps of a run use the cache: `bypass` not at all, `miss` without a lookup, None as usual."""
    if ask.cache_control.no_store or ask.cache == "never":
        return "bypass"
    return "miss" if ask.cache_control.no_cache or ask.cache_control.max_age_seconds is not None else None


async def _prompt_job(services: Services, ask: Ask, prompt: Prompt, references: References) -> Job:
    """Return the job that sends the rendered prompt to its model.

    Its fingerprint is that of the request for the prompt, so a retry matches it whatever the prompt's version.
    """
    model = await services.caches.models.find(prompt.model)
    name = prompt.model or model.name
    path, body = render_request(prompt, name, ask.path, ask.body, max_bytes=services.rules.max_body_bytes)
    rendered = msgspec.structs.replace(ask, target=name, path=path, body=body)
    job = await _model_job(services, rendered, model, parse_sampling(body), references, prompt=prompt.name)
    fingerprint = None if job.fingerprint is None else _fingerprint(ask, job.headers)
    return msgspec.structs.replace(job, prompt_version=prompt.version, fingerprint=fingerprint)


async def _model_job(
    services: Services, ask: Ask, model: Model, sampling: Sampling, references: References, *, prompt: str | None = None
) -> Job:
    """Return the job that calls `model`, with a body that was rendered from `prompt`.

    Raises NotFound if the model does not serve the path, and MissingParameter.
    """
    if accepts_any_json(model) and ask.path[0] != "/":
        raise NotFound(f"The model {model.name!r} does not serve {ask.path}; use a model of the kind openai.")
    check_route(ask.caller, ask.path, model)
    review = "always" if references.is_held else model.review
    path = path_for(model, ask.path, ask.body)
    policy = policy_for(review_for(ask.path, review), ask.door_review, services.rules.policy)
    governed = PolicyAdmission(policy)
    if not services.caches.policies.is_empty and ask.path != COUNT_TOKENS:
        governed = await govern(services, _context(ask, model, path, prompt), policy)
    if governed.policy.may_hold:
        await hold_objects(services, references.changing_ids)
    if path != PREDICT:
        members = read_members(ask.body)
        is_strict = ask.requires_members or ask.path in {MESSAGES, COUNT_TOKENS}  # these have no free form
        if is_strict and (name := missing_member(ask.path, members)) is not None:
            raise MissingParameter(name)
    headers, cache_key = requested_headers(services, ask, model), None
    if governed.is_cacheable and is_creation(path):
        cache_key = cache_key_for(services, ask, model, governed.policy, sampling=sampling, path=path, headers=headers)
    job = _new_job(services, ask, model, governed, path=path, cache_key=cache_key, headers=headers)
    return job if prompt is None else msgspec.structs.replace(job, prompt=prompt)


def _context(ask: Ask, target: Model | Pipeline, path: str, prompt: str | None = None) -> RequestContext:
    return RequestContext(
        path=path,
        target=ask.target or target.name,
        model=target.name,
        door=ask.door,
        body=ask.body,
        metadata=ask.metadata,
        prompt=prompt,
        user=ask.caller.email,
    )


def check_route(caller: Caller, path: str, model: Model) -> None:
    """Raise Forbidden for a route that users must not call: it could make credentials or administer the upstream."""
    if caller.role == "admin" or path in KNOWN or model.kind == "echo":
        return
    if (route := parse_route(path)) is None:
        return
    if not model.allows_users(route.first_segment):
        raise Forbidden(
            f"The route {route.path} is for admins; an admin can add {route.first_segment!r} to `routes` of the model "
            f"{model.name}."
        )


def _new_job(  # noqa: PLR0913 -- what was decided about the request
    services: Services,
    ask: Ask,
    target: Model | Pipeline,
    governed: PolicyAdmission,
    *,
    path: str,
    cache_key: str | None,
    headers: dict[str, str] | None = None,
) -> Job:
    """Return a job for `target`.

    A waiting call starts with its first attempt and a lease; a queued job waits for a worker to claim it.
    """
    policy = governed.policy
    rules, job_id, is_now = services.rules, services.ids.new_id(), ask.lane == "now"
    attempts = target.attempts if isinstance(target, Model) else rules.later_attempts
    # A client that lost its connection during a review finds its job by the fingerprint when it retries.
    may_hold = policy.may_hold or (isinstance(target, Model) and services.caches.models.may_reach_person(target))
    needs_fingerprint = ask.client_id or ask.idempotency_key or (is_now and may_hold)
    return Job(
        id=job_id,
        status="bot",
        door=ask.door,
        lane=ask.lane,
        user_id=ask.caller.user_id,
        token_id=ask.caller.token_id,
        target=ask.target or target.name,
        model=target.name,
        path=path,
        body=ask.body,
        metadata=ask.metadata,
        priority=ask.priority,
        policy=policy,
        ruling=governed.ruling,
        client_id=ask.client_id,
        idempotency_key=ask.idempotency_key,
        fingerprint=_fingerprint(ask, headers) if needs_fingerprint else None,
        key_id=ask.caller.key_id if ask.key_id is None else ask.key_id,
        headers=headers,
        deliver=delivery_targets(services, ask, job_id),
        max_attempts=attempts or (rules.now_attempts if is_now else rules.later_attempts),
        attempt=1 if is_now else 0,
        lease=job_id if is_now else None,  # the first of its leases, so no other one of the job has this token
        cache="bypass" if cache_key is None else "miss",
        cache_key=cache_key,
    )


def _check_ask(ask: Ask) -> Sampling:
    """Check the fields of `ask`, and return the sampling parameters of its body. Raises BadRequest, BadBody."""
    if ask.priority not in PRIORITIES:
        raise BadRequest(f"`priority` must be an integer from 0 (last) to 9 (first) (got {ask.priority}).")
    check_idempotency_key(ask.idempotency_key)
    if ask.client_id is not None and not (ask.client_id.isprintable() and 0 < len(ask.client_id) <= MAX_KEY_LENGTH):
        raise BadRequest(f"`job_id` must be 1 to {MAX_KEY_LENGTH} printable characters (got {len(ask.client_id)}).")
    if ask.client_id is not None and JOB_ID.fullmatch(ask.client_id):
        raise BadRequest("`job_id` must not be a UUID of version 7, as ids of this server are; send a random UUID.")
    if ask.path not in KNOWN and ask.path != PREDICT and parse_route(ask.path) is None:
        raise BadRequest(f"`path` must be {PREDICT} or an endpoint of OpenAI's API, such as {CHAT} (got {ask.path!r}).")
    try:
        ask.body.decode()
        return parse_sampling(ask.body) if ask.sampling is None else ask.sampling
    except (ValueError, RecursionError) as error:
        raise BadBody(f"The body is not valid JSON: {error}") from None


def parse_sampling(body: bytes) -> Sampling:
    """Return the sampling parameters of `body`, and check that all of it is JSON.

    A body that is not an object, or whose parameters have wrong types, has the defaults.
    Raises ValueError or RecursionError if the body is not JSON.
    """
    try:
        return msgspec.json.decode(body, type=Sampling)
    except msgspec.ValidationError:
        msgspec.json.decode(body, type=msgspec.Raw)
        return Sampling()


def _fingerprint(ask: Ask, headers: dict[str, str] | None = None) -> str:
    """Return the digest by which a retry of the same request is recognised."""
    webhook_url = "" if ask.webhook is None else ask.webhook.url
    parts = (ask.path.encode(), (ask.target or "").encode(), webhook_url.encode(), ask.body)
    relevant = comparable_headers(headers)
    return fingerprint(*parts, relevant) if relevant else fingerprint(*parts)
