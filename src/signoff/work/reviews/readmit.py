"""Readmission: an edited request passes the admission of its owner again, as a new request for its model would."""

import msgspec

from signoff.core.access import Caller, lower_role
from signoff.core.api_paths import PREDICT
from signoff.core.ask import Ask
from signoff.core.job import Job, NewTarget
from signoff.core.reviews.request_values import context_of
from signoff.core.reviews.strictness import stricter
from signoff.errors import BadRequest
from signoff.work.admit import admit
from signoff.work.reviews.policies import govern
from signoff.work.services import Services


async def readmit(services: Services, job: Job, body: bytes) -> NewTarget | None:
    """Return what changes with the edited request `body`; None for the run of a pipeline.

    The stricter of the old and the new review policy applies. Raises what `admit_edited` raises.
    """
    if job.pipeline_id is not None:
        return None
    admitted = await admit_edited(services, job, await _owner(services, job), body)
    governed = await govern(services, context_of(admitted), stricter(job.policy, admitted.policy))
    return NewTarget(
        target=admitted.target,
        model=admitted.model,
        path=admitted.path,
        policy=governed.policy,
        max_attempts=admitted.max_attempts,
    )


async def admit_edited(services: Services, job: Job, caller: Caller, body: bytes) -> Job:
    """Return a job of `caller` for the edited request of `job`, which is not stored.

    Raises ModelNotFound if the request names an unknown model, BadRequest if it names a prompt or a pipeline, and all
    that `admit` raises.
    """
    target = _edited_model(job, body) or job.target
    ask = Ask(door=job.door, caller=caller, path=job.path, body=body, target=target, cache="never")
    admitted = await admit(services, ask)
    if admitted.pipeline_id is not None or admitted.prompt is not None:
        raise BadRequest(f"`payload.model` must be a model; {target!r} is a prompt or a pipeline.")
    return admitted


def _edited_model(job: Job, body: bytes) -> str | None:
    """Return the model that an edited request names; None if that is not new, or a member of the model's own."""
    if job.door == "predict" or (job.path == PREDICT and job.door != "jobs"):
        return None
    new = _model_in(body)
    return None if new == _model_in(job.body) else new


async def _owner(services: Services, job: Job) -> Caller:
    """Return the owner of `job` with the rights of its token; with those of a plain user if either does not exist."""
    user, token = await services.store.people.user_with_token(job.user_id, job.token_id)
    role, email = ("user", "") if user is None or token is None else (lower_role(token.role, user.role), user.email)
    return Caller(user_id=job.user_id, token_id=job.token_id, role=role, email=email)


class _ModelMember(msgspec.Struct):
    model: str | None = None


def _model_in(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=_ModelMember).model
    except (ValueError, RecursionError):
        return None
