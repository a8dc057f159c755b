"""Retry: submit the request of a job that has ended once more, as a new job."""

from signoff.core.access import Caller
from signoff.core.job import Job
from signoff.errors import BadRequest, Forbidden, ModelNotFound, Stale
from signoff.work.admit import check_route
from signoff.work.inference.ownership import find_references
from signoff.work.inference.resolve import may_use_item
from signoff.work.jobs.deliver import result_mirrors
from signoff.work.jobs.query import get_job
from signoff.work.services import Services


async def retry_job(services: Services, caller: Caller, job_id: str) -> Job:
    """Store a new job with the request and the owner of the old one, and return it.

    Raises JobNotFound, BacklogFull, Stale if the old job has not ended, BadRequest for the call of a policy, whose
    request is not stored, and what `copy_for_retry` raises.
    """
    old = await get_job(services, caller, job_id)
    if caller.role != "admin" and caller.user_id != old.user_id:
        raise Forbidden("Only the owner of a job or an admin may retry it.")
    if not old.is_terminal:
        raise Stale(f"The job is {old.status}; retry it when it has ended.", job_id=job_id)
    if old.is_consultation:
        raise BadRequest("The job asked a model for a policy; its request is not stored and cannot be sent again.")
    new = await copy_for_retry(services, caller, old)
    with await services.runtime.backlogs.reserve(new.user_id, len(new.body) + len(new.metadata)):
        job = await services.store.jobs.insert(new, actor=caller.actor)
    services.adapters.broker.notify(job.id, job.priority)
    return job


async def copy_for_retry(services: Services, caller: Caller, old: Job) -> Job:
    """Return a queued job with the request of `old`, which is not stored yet.

    What the caller may do now counts, not what was allowed at the time of the old job.

    Raises:
        NotFound: the target does not exist for this caller any more, or the request names an object that never did.
        Forbidden: the route, or a list of the objects of all callers at the upstream, is for admins.
    """
    await _check_rights(services, caller, old)
    new_id = services.ids.new_id()
    return Job(
        id=new_id,
        status="bot",
        door=old.door,
        lane="later",
        user_id=old.user_id,
        token_id=caller.token_id,
        target=old.target,
        model=old.model,
        path=old.path,
        body=old.body,
        metadata=old.metadata,
        priority=old.priority,
        policy=old.policy,
        deliver=(*(to for to in old.deliver if to.kind != "redis"), *result_mirrors(services, new_id)),
        retry_of=old.id,
        prompt=old.prompt,
        prompt_version=old.prompt_version,
        pipeline_id=old.pipeline_id,
        pipeline_version=old.pipeline_version,
        key_id=old.key_id,
        headers=old.headers,
        max_attempts=services.rules.later_attempts,
        # A retry skips the lookup, and its answer replaces the cached one. A job that bypassed the cache bypasses it
        # again: a reviewer may have edited its request, and the key is that of the unedited request.
        cache="miss" if old.pipeline_id is None and old.cache == "hit" else old.cache,
        cache_key=old.cache_key,
    )


async def _check_rights(services: Services, caller: Caller, old: Job) -> None:
    if old.pipeline_id is None:
        check_route(caller, old.path, await services.caches.models.find(old.target))
        await find_references(services, caller, old.path, old.body)
        return
    pipeline = await services.caches.library.find(old.pipeline_id, old.pipeline_version or 0)
    if pipeline is None or not may_use_item(caller, pipeline):
        raise ModelNotFound(f"There is no pipeline {old.target!r}; it was removed, or is not shared any more.")
