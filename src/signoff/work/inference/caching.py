"""Response cache: look up answers that were signed off before, and store new ones.

The key of an answer has the versions of everything that made it, and the review policy that signed it off.
After a change of any of these the model is called again, and the answer is reviewed again if the policy says so.
"""

import msgspec
import structlog

from signoff.core.api_paths import STREAMED
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
from signoff.core.headers import Headers, comparable_headers
from signoff.core.job import Job
from signoff.core.model import Model
from signoff.core.reviews.policy import JobPolicy
from signoff.core.tokens import Usage
from signoff.work.services import Services

SHARED_SCOPE = "shared"
log = structlog.get_logger()


def cache_key_for(  # noqa: PLR0913 -- what was decided about the request
    services: Services,
    ask: Ask,
    model: Model,
    policy: JobPolicy,
    *,
    sampling: Sampling,
    path: str,
    headers: Headers | None = None,
) -> str | None:
    """Return the key of the answer in the response cache; None if it is neither looked up nor stored.

    `headers` are those that pass on to the model.
    """
    if ask.cache_control.no_store or not services.caches.responses.is_on:
        return None
    if not is_cacheable(model.cache, ask.caller.cache, ask.cache, sampling=sampling) or _has_unknown_events(ask, path):
        return None
    return compute_cache_key(
        scope=SHARED_SCOPE if services.rules.cache_shared else f"user:{ask.caller.user_id}",
        path=path,
        target=ask.target or model.name,
        versions=services.caches.models.version_of(model),
        policy=policy,
        body=ask.body,
        headers=comparable_headers(headers),
    )


async def lookup_answer(services: Services, ask: Ask, job: Job) -> Job | None:
    """Return `job` as ended with the answer from the cache; None if there is none or the request does not accept it.

    The result is not stored. It has no usage and no cost.
    """
    if job.cache_key is None or ask.cache_control.no_cache or ask.due_seconds > 0:
        return None
    entry = await services.caches.responses.lookup(job.cache_key, ask.cache_control.max_age_seconds)
    services.runtime.metrics.looked_up(is_hit=entry is not None)
    if entry is None:
        return None
    return msgspec.structs.replace(
        job,
        status="success",
        response=entry.answer,
        usage=Usage(),
        cost_nanodollars=0,
        cache="hit",
        attempt=0,
        lease=None,
    )


async def revalidate(services: Services, job: Job) -> Job:
    """Return the job, marked not to be cached if its model was changed since admission or another model answered.

    Call it when the model has answered. If the model cannot be loaded, the answer is not cached, but still valid.
    """
    if job.cache_key is None:
        return job
    try:
        model = await services.caches.models.find(job.target)
    except Exception as error:  # noqa: BLE001 -- the answer is valid even if it cannot be cached
        log.warning("cache_revalidation_failed", job_id=job.id, error=repr(error))
        model = None
    is_same = (
        model is not None
        and model.name == job.model
        and has_versions(job.cache_key, services.caches.models.version_of(model))
    )
    return job if is_same else msgspec.structs.replace(job, cache="bypass")


def store_answer(services: Services, job: Job, *, is_whole: bool = False) -> None:
    """Store the answer of a signed-off job in the cache, if the job may be cached and the answer is complete.

    An answer that the model sent as a whole (`is_whole`) reports all that is known of its usage.
    """
    if job.status != "success" or job.cache != "miss" or job.cache_key is None or job.response is None:
        return
    if job.copy_of is not None:
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
            answer=job.response if is_whole else with_usage(job.path, job.response, job.usage),
            usage=job.usage,
        )
    )


async def until_stored(services: Services, job: Job) -> None:
    """Wait until every process can find the cached answer of `job`, for a second at most."""
    if job.cache == "miss":
        await services.caches.responses.until_stored()


def _has_unknown_events(ask: Ask, path: str) -> bool:
    """Return True if the answer is a stream in a format that the cache cannot replay."""
    return ask.stream and path not in STREAMED
