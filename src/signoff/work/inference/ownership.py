"""Named: what a request names of what upstreams keep, and who may reach it. One key serves all of them there."""

from __future__ import annotations

import msgspec

from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.endpoints import parse_route
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.upstream_objects import referenced_ids
from signoff.errors import BadRequest, Forbidden, NotFound
from signoff.work.services import Services

MOST_NAMES = 64


class References(msgspec.Struct, frozen=True):
    """What a request names: the job that made what its path is about, and whether any of it was held."""

    subject: Job | None = None
    was_held: bool = False


NO_REFERENCES = References()


async def find_references(services: Services, ask: Ask) -> References:
    """What `ask` names, as far as it was made here.

    Raises NotFound for what somebody else made, and Forbidden for a list of what everybody made.
    """
    if (route := parse_route(ask.path)) is None:
        return NO_REFERENCES
    subject = route.object_id
    if subject is None and route.method != "POST" and ask.caller.role != "admin":
        raise Forbidden("This would list what all callers made at the upstream; admins alone may do that.")
    names = referenced_ids(ask.body)
    if len(names) > MOST_NAMES:
        raise BadRequest(f"A request may name {MOST_NAMES} objects of its upstream.")
    about = None if subject is None else await _maker_of(services, ask.caller, subject, must_be_known=True)
    makers = [about] + [await _maker_of(services, ask.caller, name, must_be_known=False) for name in names]
    return References(about, any(job.policy.may_hold for job in makers if job is not None))


def owner_of(job: Job) -> str:
    """The model that keeps what `job` made: the one that answered, by the name that was asked for where it has none."""
    return job.target if job.model.endswith("*") else job.model


async def _maker_of(services: Services, caller: Caller, name: str, *, must_be_known: bool) -> Job | None:
    makers = await services.store.jobs.list(JobFilter(upstream_object_id=name, limit=1))
    if caller.role == "admin":
        return makers[0] if makers else None
    is_own = bool(makers) and makers[0].user_id == caller.user_id and not _was_refused(makers[0])
    if not is_own and (makers or must_be_known):
        raise NotFound(f"There is no {name} here.")
    return makers[0] if makers else None


def _was_refused(job: Job) -> bool:
    """Whether what it made was never signed off."""
    return job.policy.may_hold and job.status != "success"
