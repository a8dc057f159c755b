"""Admit: may this caller ask this, of which model, and who must look at the answer?"""

from __future__ import annotations

import msgspec

from signoff.core.ask import Ask, path_for
from signoff.core.cache import CacheState, Sampling
from signoff.core.endpoints import CHAT, KNOWN, PREDICT, parse_route
from signoff.core.fingerprint import fingerprint
from signoff.core.job import Job
from signoff.core.model import Model, accepts_any_json
from signoff.core.pipelines.arguments import parse_arguments
from signoff.core.pipelines.check import parameter_names
from signoff.core.pipelines.composed import Pipeline, Prompt
from signoff.core.pipelines.render import render_request
from signoff.core.policy import Policy, policy_for
from signoff.core.upstream_objects import creates_no_object, creates_object
from signoff.errors import BadBody, BadRequest, NotFound
from signoff.work.admin.keys import key_of_user
from signoff.work.inference.caching import cache_key_for
from signoff.work.inference.ownership import NO_REFERENCES, References, find_references, owner_of
from signoff.work.inference.resolve import resolve_target
from signoff.work.jobs.deliver import delivery_targets
from signoff.work.services import Services

MAX_KEY_LENGTH = 255
PRIORITIES = range(10)


async def admit(services: Services, ask: Ask) -> Job:
    """The job that `ask` would be, not written anywhere yet. Raises NotFound, Forbidden, BadRequest."""
    sampling = _checked(ask)
    if ask.key_id is not None:
        await key_of_user(services, ask.caller.user_id, ask.key_id)
    if ask.pipeline is not None:
        return _pipeline_job(services, ask, ask.pipeline)
    named = NO_REFERENCES if creates_no_object(ask.path) else await find_references(services, ask)
    if named.subject is not None:
        ask = msgspec.structs.replace(ask, target=owner_of(named.subject))
    if ask.target is None or services.caches.models.has_exact(
        ask.target
    ):  # nearly always, and nothing more is looked at then
        return _job(services, ask, await services.caches.models.find(ask.target), sampling, named)
    target = await resolve_target(services, ask.caller, ask.target)
    if isinstance(target, Model):
        return _job(services, ask, target, sampling, named)
    if isinstance(target, Prompt):
        return await _prompt_job(services, ask, target, named)
    return _pipeline_job(services, ask, target)


def _pipeline_job(services: Services, ask: Ask, pipeline: Pipeline) -> Job:
    """A run of `pipeline`, which is gone through anew each time: its functions may tell the time. Raises BadRequest."""
    if ask.path not in {CHAT, PREDICT}:
        raise BadRequest(f"{pipeline.name!r} is a pipeline: it is asked at {CHAT}.")
    parse_arguments(ask.body, parameter_names(pipeline))
    policy = policy_for(None, ask.door_review, services.rules.policy)
    job = _new(services, ask, pipeline, policy, path=ask.path, cache_key=None)
    return msgspec.structs.replace(
        job,
        pipeline_id=pipeline.id,
        pipeline_version=pipeline.version,
        fingerprint=_fingerprint(ask),
        cache=_step_cache_state(ask),
    )


def _step_cache_state(ask: Ask) -> CacheState | None:
    """How the steps of a run use the cache: as their prompts have it, `miss` without looking, `bypass` not at all."""
    if ask.cache_control.no_store or ask.cache == "never":
        return "bypass"
    return "miss" if ask.cache_control.no_cache or ask.cache_control.max_age_seconds is not None else None


async def _prompt_job(services: Services, ask: Ask, prompt: Prompt, named: References) -> Job:
    """The job that asks the prompt's model; one that asks the same prompt for the same has the same fingerprint."""
    model = await services.caches.models.find(prompt.model)
    name = prompt.model or model.name
    path, body = render_request(prompt, name, ask.path, ask.body)
    filled = msgspec.structs.replace(ask, target=name, path=path, body=body)
    job = _job(services, filled, model, parse_sampling(body), named)
    fingerprint = None if job.fingerprint is None else _fingerprint(ask)
    return msgspec.structs.replace(job, prompt=prompt.name, prompt_version=prompt.version, fingerprint=fingerprint)


def _job(services: Services, ask: Ask, model: Model, sampling: Sampling, named: References) -> Job:
    if accepts_any_json(model) and ask.path[0] != "/":
        raise NotFound(f"The model {model.name} has nothing at {ask.path}.")
    # What was held leaves by no other way either.
    review = "always" if named.was_held else model.review
    policy = policy_for(review, ask.door_review, services.rules.policy)
    path = path_for(model, ask.path, ask.body)
    cache_key = cache_key_for(services, ask, model, policy, sampling, path) if creates_object(path) else None
    return _new(services, ask, model, policy, path=path, cache_key=cache_key)


def _new(
    services: Services, ask: Ask, target: Model | Pipeline, policy: Policy, *, path: str, cache_key: str | None
) -> Job:
    """The job that asks `target`. A call begins with its first attempt; only what is for later waits for a worker."""
    rules, job_id, is_now = services.rules, services.ids.new_id(), ask.lane == "now"
    attempts = target.attempts if isinstance(target, Model) else rules.later_attempts
    # A call that may be held may also be asked again by a client that lost its connection meanwhile.
    is_found_again = ask.client_id or ask.idempotency_key or (is_now and policy.may_hold)
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
        client_id=ask.client_id,
        idempotency_key=ask.idempotency_key,
        fingerprint=_fingerprint(ask) if is_found_again else None,
        key_id=ask.caller.key_id if ask.key_id is None else ask.key_id,
        deliver=delivery_targets(services, ask, ask.client_id or job_id),
        max_attempts=attempts or (rules.now_attempts if is_now else rules.later_attempts),
        attempt=1 if is_now else 0,
        lease=services.ids.new_id() if is_now else None,
        cache="bypass" if cache_key is None else "miss",
        cache_key=cache_key,
    )


def _checked(ask: Ask) -> Sampling:
    """What the request says about chance. Raises BadRequest."""
    if ask.priority not in PRIORITIES:
        raise BadRequest("priority is a whole number from 0 to 9; 9 goes first.")
    if ask.idempotency_key is not None and not 0 < len(ask.idempotency_key) <= MAX_KEY_LENGTH:
        raise BadRequest(f"An idempotency key has 1 to {MAX_KEY_LENGTH} characters.")
    if ask.client_id is not None and not (ask.client_id.isprintable() and 0 < len(ask.client_id) <= MAX_KEY_LENGTH):
        raise BadRequest(f"A job id has 1 to {MAX_KEY_LENGTH} printable characters.")
    if ask.path not in KNOWN and ask.path != PREDICT and parse_route(ask.path) is None:
        raise BadRequest("path is /predict, or one of the OpenAI API, such as /v1/chat/completions.")
    try:
        ask.body.decode()
        return parse_sampling(ask.body) if ask.sampling is None else ask.sampling
    except (ValueError, RecursionError) as error:
        raise BadBody(f"The body is not valid JSON: {error}") from None


def parse_sampling(body: bytes) -> Sampling:
    """All of the body is read, whatever it says. Raises ValueError, RecursionError."""
    try:
        return msgspec.json.decode(body, type=Sampling)
    except msgspec.ValidationError:  # it is no object, but it may be JSON
        msgspec.json.decode(body, type=msgspec.Raw)
        return Sampling()


def _fingerprint(ask: Ask) -> str:
    told = "" if ask.webhook is None else ask.webhook.url
    return fingerprint(ask.path.encode(), (ask.target or "").encode(), told.encode(), ask.body)
