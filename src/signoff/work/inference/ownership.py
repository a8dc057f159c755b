"""Ownership of objects that upstreams store, such as responses and files.

All callers share one upstream key, so the upstream cannot tell them apart; the jobs that created the objects can.
"""

import msgspec

from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.endpoints import parse_route
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.upstream_objects import referenced_ids
from signoff.errors import BadRequest, Forbidden, NotFound
from signoff.work.services import Services

MAX_REFERENCES = 64


class References(msgspec.Struct, frozen=True):
    """Jobs of the objects that a request refers to."""

    subject: Job | None = None
    """The job that created the object in the request's path; None if the path has none."""
    was_held: bool = False
    """A job that created any of the objects may be held, so the answer must be reviewed too."""


NO_REFERENCES = References()


async def find_references(services: Services, ask: Ask) -> References:
    """Return the objects that `ask` refers to, as far as they were created through this deployment.

    Raises:
        NotFound: an object belongs to another user, or the one in the path is unknown.
        Forbidden: the request would list the objects of all callers, and the caller is not an admin.
        BadRequest: the body refers to too many objects.
    """
    if (route := parse_route(ask.path)) is None:
        return NO_REFERENCES
    object_id = route.object_id
    if object_id is None and route.method != "POST" and ask.caller.role != "admin":
        raise Forbidden("Only an admin may list the objects of all callers at the upstream.")
    ids = referenced_ids(ask.body)
    if len(ids) > MAX_REFERENCES:
        raise BadRequest(f"A body may refer to at most {MAX_REFERENCES} upstream objects (got {len(ids)}).")
    creator = None if object_id is None else await _find_creator(services, ask.caller, object_id, must_exist=True)
    creators = [creator] + [await _find_creator(services, ask.caller, each, must_exist=False) for each in ids]
    return References(creator, any(job.policy.may_hold for job in creators if job is not None))


def owner_of(job: Job) -> str:
    """Return the model that stores the object of `job`: the one that answered, or the target for a wildcard model."""
    return job.target if job.model.endswith("*") else job.model


async def _find_creator(services: Services, caller: Caller, object_id: str, *, must_exist: bool) -> Job | None:
    creators = await services.store.jobs.list(JobFilter(upstream_object_id=object_id, limit=1))
    if caller.role == "admin":
        return creators[0] if creators else None
    may_use = bool(creators) and creators[0].user_id == caller.user_id and not _is_unsigned(creators[0])
    if not may_use and (creators or must_exist):
        raise NotFound(f"There is no object {object_id!r}.")
    return creators[0] if creators else None


def _is_unsigned(job: Job) -> bool:
    """Return True if the answer of the job needed a review and was not signed off."""
    return job.policy.may_hold and job.status != "success"
