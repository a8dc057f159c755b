"""Recall: what was answered and signed off before is answered again, and what is signed off now is kept for that.

An answer is kept under the versions of all that made it, and under the policy that signed it off: whatever of those
changes, the model is asked again, and a person where the policy wants one.
"""

from __future__ import annotations

import msgspec
import structlog

from signoff.core.ask import Ask
from signoff.core.cache import (
    CacheEntry,
    Sampling,
    compute_cache_key,
    has_versions,
    is_cacheable,
    is_complete,
    with_usage,
)
from signoff.core.endpoints import STREAMED
from signoff.core.job import Job
from signoff.core.model import Model
from signoff.core.policy import Policy
from signoff.core.tokens import Usage
from signoff.work.services import Services

SHARED = "shared"
log = structlog.get_logger()


def cache_key_for(
    services: Services, ask: Ask, model: Model, policy: Policy, sampling: Sampling, path: str
) -> str | None:
    """The key under which the answer can be given again; None where it is neither looked for nor kept."""
    if ask.cache_control.no_store or not services.caches.responses.is_on:
        return None
    if not is_cacheable(model.cache, ask.caller.cache, ask.cache, sampling=sampling) or _is_unread(ask, path):
        return None
    return compute_cache_key(
        scope=SHARED if services.rules.cache_shared else f"user:{ask.caller.user_id}",
        path=path,
        target=ask.target or model.name,
        versions=services.caches.models.version_of(model),
        policy=policy,
        body=ask.body,
    )


async def lookup_answer(services: Services, ask: Ask, asked: Job) -> Job | None:
    """The job as it ends where the same was signed off before, and the caller takes it; else None."""
    if asked.cache_key is None or ask.cache_control.no_cache or ask.due_seconds > 0:
        return None
    entry = await services.caches.responses.lookup(asked.cache_key, ask.cache_control.max_age_seconds)
    if entry is None:
        return None
    return msgspec.structs.replace(
        asked,
        status="success",
        response=entry.answer,
        usage=Usage(),  # it took none
        cost_nanodollars=0,
        cache="hit",
        attempt=0,
        lease=None,
    )


async def revalidate(services: Services, job: Job) -> Job:
    """The job, whose model has just answered: not to be kept if that was changed since the job was asked for, nor if
    another model answered in its place.
    """
    if job.cache_key is None:
        return job
    try:
        model = await services.caches.models.find(job.target)
    except Exception as error:  # noqa: BLE001 -- the answer is there: it must not fail for this
        log.info("whether a model was changed is not known; its answer is not kept", job=job.id, error=repr(error))
        model = None
    is_same = (
        model is not None
        and model.name == job.model
        and has_versions(job.cache_key, services.caches.models.version_of(model))
    )
    return job if is_same else msgspec.structs.replace(job, cache="bypass")


def store_answer(services: Services, job: Job) -> None:
    """Keeps the answer of a job that is signed off, where it may be given again."""
    if job.status != "success" or job.cache != "miss" or job.cache_key is None or job.response is None:
        return
    if not is_complete(job.path, job.response):
        return
    services.caches.responses.store(
        CacheEntry(
            key=job.cache_key,
            user_id=job.user_id,
            target=job.target,
            model=job.model,
            path=job.path,
            job_id=job.id,
            answer=with_usage(job.path, job.response, job.usage),
            usage=job.usage,
        )
    )


async def until_stored(services: Services, job: Job) -> None:
    """Returns as soon as every process can find the answer of `job`, where it is kept; after a second at the latest."""
    if job.cache == "miss":
        await services.caches.responses.until_stored()


def _is_unread(ask: Ask, path: str) -> bool:
    """Whether it is a stream whose form nobody here knows."""
    return ask.stream and path not in STREAMED
