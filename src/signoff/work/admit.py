"""Admit: may this caller ask this, of which model, and who must look at the answer?"""

from __future__ import annotations

import msgspec

from signoff.core.ask import Ask, path_for
from signoff.core.cache import CacheState, Sampling
from signoff.core.endpoints import CHAT, KNOWN, PREDICT, route_of
from signoff.core.job import Job
from signoff.core.keys import fingerprint
from signoff.core.model import Model, takes_any_json
from signoff.core.pipelines.arguments import arguments_in
from signoff.core.pipelines.check import wants
from signoff.core.pipelines.composed import Pipeline, Prompt
from signoff.core.pipelines.render import asked_of_model
from signoff.core.policy import Policy, policy_for
from signoff.core.upstream_objects import is_new, leaves_nothing
from signoff.errors import BadBody, BadRequest, NotFound
from signoff.work.admin.keys import key_of_user
from signoff.work.inference.caching import key_for
from signoff.work.inference.ownership import NOTHING, Named, keeper_of, what_is_named
from signoff.work.inference.resolve import target_of
from signoff.work.jobs.deliver import ends_told
from signoff.work.services import Desk

MAX_KEY_LENGTH = 255
PRIORITIES = range(10)


async def admit(desk: Desk, ask: Ask) -> Job:
    """The job that `ask` would be, not written anywhere yet. Raises NotFound, Forbidden, BadRequest."""
    sampling = _checked(ask)
    if ask.key_id is not None:
        await key_of_user(desk, ask.caller.user_id, ask.key_id)
    if ask.pipeline is not None:
        return _run_of(desk, ask, ask.pipeline)
    named = NOTHING if leaves_nothing(ask.path) else await what_is_named(desk, ask)
    if named.subject is not None:
        ask = msgspec.structs.replace(ask, target=keeper_of(named.subject))
    if ask.target is None or desk.models.knows(ask.target):  # nearly always, and nothing more is looked at then
        return _job(desk, ask, await desk.models.find(ask.target), sampling, named)
    target = await target_of(desk, ask.caller, ask.target)
    if isinstance(target, Model):
        return _job(desk, ask, target, sampling, named)
    if isinstance(target, Prompt):
        return await _job_of_prompt(desk, ask, target, named)
    return _run_of(desk, ask, target)


def _run_of(desk: Desk, ask: Ask, pipeline: Pipeline) -> Job:
    """A run of `pipeline`, which is gone through anew each time: its functions may tell the time. Raises BadRequest."""
    if ask.path not in {CHAT, PREDICT}:
        raise BadRequest(f"{pipeline.name!r} is a pipeline: it is asked at {CHAT}.")
    arguments_in(ask.body, wants(pipeline))
    policy = policy_for(None, ask.door_review, desk.rules.policy)
    job = _new(desk, ask, pipeline, policy, path=ask.path, cache_key=None)
    return msgspec.structs.replace(
        job,
        pipeline_id=pipeline.id,
        pipeline_version=pipeline.version,
        fingerprint=_fingerprint(ask),
        cache=_how_steps_use_it(ask),
    )


def _how_steps_use_it(ask: Ask) -> CacheState | None:
    """How the steps of a run use the cache: as their prompts have it, `miss` without looking, `bypass` not at all."""
    if ask.fresh.no_store or ask.cache == "never":
        return "bypass"
    return "miss" if ask.fresh.no_cache or ask.fresh.max_age_seconds is not None else None


async def _job_of_prompt(desk: Desk, ask: Ask, prompt: Prompt, named: Named) -> Job:
    """The job that asks the prompt's model; one that asks the same prompt for the same has the same fingerprint."""
    model = await desk.models.find(prompt.model)
    name = prompt.model or model.name
    path, body = asked_of_model(prompt, name, ask.path, ask.body)
    filled = msgspec.structs.replace(ask, target=name, path=path, body=body)
    job = _job(desk, filled, model, sampling_of(body), named)
    fingerprint = None if job.fingerprint is None else _fingerprint(ask)
    return msgspec.structs.replace(job, prompt=prompt.name, prompt_version=prompt.version, fingerprint=fingerprint)


def _job(desk: Desk, ask: Ask, model: Model, sampling: Sampling, named: Named) -> Job:
    if takes_any_json(model) and ask.path[0] != "/":
        raise NotFound(f"The model {model.name} has nothing at {ask.path}.")
    # What was held leaves by no other way either.
    review = "always" if named.was_held else model.review
    policy = policy_for(review, ask.door_review, desk.rules.policy)
    path = path_for(model, ask.path, ask.body)
    cache_key = key_for(desk, ask, model, policy, sampling, path) if is_new(path) else None
    return _new(desk, ask, model, policy, path=path, cache_key=cache_key)


def _new(desk: Desk, ask: Ask, target: Model | Pipeline, policy: Policy, *, path: str, cache_key: str | None) -> Job:
    """The job that asks `target`. A call begins with its first attempt; only what is for later waits for a worker."""
    rules, job_id, is_now = desk.rules, desk.new_id(), ask.lane == "now"
    attempts = target.attempts if isinstance(target, Model) else rules.later_attempts
    # A call that may be held may also be asked again by a client that lost its connection meanwhile.
    is_found_again = ask.own_id or ask.idempotency_key or (is_now and policy.may_hold)
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
        own_id=ask.own_id,
        idempotency_key=ask.idempotency_key,
        fingerprint=_fingerprint(ask) if is_found_again else None,
        key_id=ask.caller.key_id if ask.key_id is None else ask.key_id,
        deliver=ends_told(desk, ask, ask.own_id or job_id),
        max_attempts=attempts or (rules.now_attempts if is_now else rules.later_attempts),
        attempt=1 if is_now else 0,
        lease=desk.new_id() if is_now else None,
        cache="bypass" if cache_key is None else "miss",
        cache_key=cache_key,
    )


def _checked(ask: Ask) -> Sampling:
    """What the request says about chance. Raises BadRequest."""
    if ask.priority not in PRIORITIES:
        raise BadRequest("priority is a whole number from 0 to 9; 9 goes first.")
    if ask.idempotency_key is not None and not 0 < len(ask.idempotency_key) <= MAX_KEY_LENGTH:
        raise BadRequest(f"An idempotency key has 1 to {MAX_KEY_LENGTH} characters.")
    if ask.own_id is not None and not (ask.own_id.isprintable() and 0 < len(ask.own_id) <= MAX_KEY_LENGTH):
        raise BadRequest(f"A job id has 1 to {MAX_KEY_LENGTH} printable characters.")
    if ask.path not in KNOWN and ask.path != PREDICT and route_of(ask.path) is None:
        raise BadRequest("path is /predict, or one of the OpenAI API, such as /v1/chat/completions.")
    try:
        ask.body.decode()
        return sampling_of(ask.body) if ask.sampling is None else ask.sampling
    except (ValueError, RecursionError) as error:
        raise BadBody(f"The body is not valid JSON: {error}") from None


def sampling_of(body: bytes) -> Sampling:
    """All of the body is read, whatever it says. Raises ValueError, RecursionError."""
    try:
        return msgspec.json.decode(body, type=Sampling)
    except msgspec.ValidationError:  # it is no object, but it may be JSON
        msgspec.json.decode(body, type=msgspec.Raw)
        return Sampling()


def _fingerprint(ask: Ask) -> str:
    told = "" if ask.deliver is None else ask.deliver.url
    return fingerprint(ask.path.encode(), (ask.target or "").encode(), told.encode(), ask.body)
