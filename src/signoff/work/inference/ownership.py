"""Ownership of objects that upstreams store, such as responses and files, and the hold on them.

All callers share one upstream key, so the upstream cannot tell them apart; the jobs that created the objects can.

The rule of the hold: an answer that depends on a held answer is held. An object that a job under review creates or may
add to is marked before the request goes out, for ever; and what names a marked object is held.
"""

from collections.abc import Iterable, Sequence

import msgspec

from signoff.core.access import Caller
from signoff.core.api_paths import parse_route
from signoff.core.job import Job
from signoff.core.reviews.policy import policy_for, review_for
from signoff.core.reviews.strictness import stricter
from signoff.core.upstream_objects import can_change, ids_in_route, is_stateless, referenced_ids
from signoff.engine import Sink
from signoff.errors import BadRequest, Forbidden, NotFound, ObjectHeld
from signoff.work.reviews.policies import govern_job
from signoff.work.services import Services

MAX_REFERENCES = 10_000


class References(msgspec.Struct, frozen=True):
    """Objects at the upstream that a request refers to."""

    subject: Job | None = None
    """The job that created the object in the request's path; None if the path has none."""
    changing_ids: tuple[str, ...] = ()
    """Ids of the objects that the request may add to."""
    is_held: bool = False
    """True if an answer under review may be in one of the objects, so that this answer must be reviewed too."""


NO_REFERENCES = References()


async def find_references(services: Services, caller: Caller, path: str, body: bytes) -> References:
    """Return the objects that a request of `caller` refers to.

    Raises:
        NotFound: an object belongs to another user, or the one in the path is unknown.
        Forbidden: the request would list the objects of all callers, and the caller is not an admin.
        BadRequest: the body refers to too many objects.
    """
    if (route := parse_route(path)) is None:
        return NO_REFERENCES
    is_admin = caller.role == "admin"
    if route.object_id is None and route.method != "POST" and not is_admin:
        raise Forbidden("Only an admin may list the objects of all callers at the upstream.")
    ids = _ids_of(path, body)
    if not ids:
        return NO_REFERENCES
    creators = await services.store.objects.creators(ids)
    hidden = [] if is_admin else [each for each, job in creators.items() if not _may_use(caller, job)]
    if not is_admin and route.object_id is not None and route.object_id not in creators:
        hidden.append(route.object_id)
    if hidden:
        raise NotFound(f"There is no object {min(hidden)!r}; check the id and the token.")
    return References(
        subject=None if route.object_id is None else creators.get(route.object_id),
        changing_ids=tuple(each for each in ids if can_change(each)),
        is_held=await _is_any_held(services, ids, creators.values()),
    )


async def tighten_policy(services: Services, job: Job) -> Job:
    """Return a queued job under the stricter of its policy and the one that applies now.

    Its model may have come under review since its admission, or an object that it names, or other policies may apply.
    """
    policy = job.policy
    if job.pipeline_id is None and policy.review != "always":
        model = await services.caches.models.find(job.target)
        review = "always" if await names_held_object(services, job) else model.review
        policy = stricter(policy, policy_for(review_for(job.path, review), "never", services.rules.policy))
    governed = await govern_job(services, job, policy)
    if governed.policy == job.policy:
        return msgspec.structs.replace(job, ruling=governed.ruling) if governed.ruling != job.ruling else job
    if governed.policy.may_hold and job.pipeline_id is None:
        await hold_objects(services, [each for each in _ids_of(job.path, job.body) if can_change(each)])
    cache = "bypass" if job.pipeline_id is None else job.cache
    return msgspec.structs.replace(job, policy=governed.policy, ruling=governed.ruling, cache=cache)


async def hold_objects(services: Services, object_ids: Sequence[str]) -> None:
    """Mark the objects that a job under review may add to. Call it before the request goes out."""
    if object_ids:
        await services.store.objects.hold(object_ids)


async def names_held_object(services: Services, job: Job) -> bool:
    """Return True if an answer under review may be in an object that the request of `job` names.

    Call it when the answer has come, before any of it leaves: what the upstream put into it was marked before.
    """
    if job.pipeline_id is not None:
        return False
    ids = _ids_of(job.path, job.body)
    if not ids:
        return False
    creators = await services.store.objects.creators(ids)
    return await _is_any_held(services, ids, creators.values())


async def check_not_held(services: Services, job: Job) -> None:
    """Raise ObjectHeld if an answer under review came into an object that `job` names since its admission."""
    if not job.policy.may_hold and await names_held_object(services, job):  # else its answer is judged
        raise ObjectHeld(
            "An answer that waits for a review was written into an object that this request names; send the request "
            "again.",
            job_id=job.id,
        )


class CheckedSink:
    """Sink that passes events on after a check, before the first one, that the job names no held object."""

    def __init__(self, services: Services, job: Job, sink: Sink) -> None:
        self._services = services
        self._job = job
        self._sink = sink
        self._is_checked = False

    async def send(self, events: Sequence[bytes]) -> None:
        """Pass the events on. Raises ObjectHeld."""
        if not self._is_checked:
            await check_not_held(self._services, self._job)
            self._is_checked = True
        await self._sink.send(events)


def storing_model(job: Job) -> str:
    """Return the model that stores the object of `job`: the one that answered, or the target for a wildcard model."""
    return job.target if job.model.endswith("*") else job.model


def _ids_of(path: str, body: bytes) -> list[str]:
    """Return the ids of objects in a request. Raises BadRequest if there are too many."""
    if is_stateless(path) or (route := parse_route(path)) is None:
        return []
    ids = referenced_ids(body) | ids_in_route(route)
    if len(ids) > MAX_REFERENCES:
        raise BadRequest(f"A request may refer to at most {MAX_REFERENCES} upstream objects (got {len(ids)}).")
    return sorted(ids)


async def _is_any_held(services: Services, ids: Sequence[str], creators: Iterable[Job]) -> bool:
    return any(_may_be_held(job) for job in creators) or bool(await services.store.objects.held(ids))


def _may_be_held(creator: Job) -> bool:
    """Return True unless the answer of `creator` needed no review, by its policy or by the ruling on it."""
    is_passed = creator.status == "success" and creator.ruling is not None and creator.ruling.outcome == "pass"
    return creator.policy.may_hold and not is_passed


def _may_use(caller: Caller, creator: Job) -> bool:
    """Return True if `caller` created the object, and its answer was signed off if it had to be."""
    return creator.user_id == caller.user_id and not (creator.policy.may_hold and creator.status != "success")
