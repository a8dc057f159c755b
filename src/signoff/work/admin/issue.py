"""Tokens that users create over HTTP, with no more rights than the token that creates them."""

from typing import Annotated

import msgspec

from signoff.core.access import Caller, Role, User, check_admin, lower_role
from signoff.core.api_tokens import hash_token
from signoff.core.cache import CacheRule
from signoff.errors import BadRequest, Conflict, Forbidden
from signoff.work.admin.people import DAY_SECONDS, MAX_DAYS, MAX_TOKEN_NAME_LENGTH, create_token, user_with_email
from signoff.work.services import Services


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Request for a new token, and the body of `POST /api/tokens`."""

    name: Annotated[str, msgspec.Meta(max_length=MAX_TOKEN_NAME_LENGTH)] = ""
    """Description of what the token is for."""
    email: str | None = None
    """E-mail address of the owner, for admins; None for the caller."""
    role: Role | None = None
    """Role of the token; None for the most that the caller and the owner may have."""
    days: Annotated[float, msgspec.Meta(gt=0, le=MAX_DAYS)] | None = None
    """Lifetime in days; None for no end."""
    cache: CacheRule | None = None
    """Cache rule of its requests; None for that of the model."""
    key_id: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] | None = None
    """Id of the upstream key for its requests; None for that of the model."""


class NewToken(msgspec.Struct, frozen=True):
    """A token that was created, and the answer to `POST /api/tokens`."""

    id: int
    """Id, by which the token can be revoked."""
    token: str
    """The token, which cannot be shown again."""


async def issue_token(services: Services, caller: Caller, request: TokenRequest) -> NewToken:
    """Create an API token and return it.

    A token cannot create one with more rights or a later end, so that it is of no use once it is over.
    Raises Forbidden, BadRequest, NotFound, and Conflict if somebody has disabled the owner meanwhile.
    """
    user = await _owner(services, caller, request.email)
    role = request.role or lower_role(caller.role, user.role)
    if lower_role(role, caller.role) != role:
        raise Forbidden(f"`role` must not exceed yours, which is {caller.role} (got {role}).")
    seconds = None if request.days is None else request.days * DAY_SECONDS
    if caller.kind == "api" and caller.expires_at is not None:
        seconds_left = (caller.expires_at - services.clock()) / 1_000_000
        if seconds is None or seconds > seconds_left:
            days_left = seconds_left / DAY_SECONDS
            raise BadRequest(f"`days` must be set, and at most {days_left:.2f}, as your own token expires then.")
    token = await create_token(
        services, user, role=role, name=request.name, seconds=seconds, cache=request.cache, key_id=request.key_id
    )
    stored = await services.store.people.token(hash_token(token))
    if stored is None:
        raise Conflict(f"{user.email} was disabled meanwhile; enable the user, and create another token.")
    return NewToken(stored[0].id, token)


async def _owner(services: Services, caller: Caller, email: str | None) -> User:
    if email is not None and email.lower() != caller.email:
        check_admin(caller)
    return await user_with_email(services, email or caller.email)
