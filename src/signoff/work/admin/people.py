"""Users, their tokens, and signing in."""

import asyncio
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from signoff.core.access import Caller, Role, TokenKind, User, lower_role
from signoff.core.api_tokens import PREFIX, digest, format_token
from signoff.core.cache import CacheRule
from signoff.errors import BadRequest, Unauthorized
from signoff.work.admin.keys import key_of_user
from signoff.work.services import Services

SESSION_SECONDS = 14 * 24 * 3600.0
SIGN_IN_SECONDS = 24 * 3600.0
MIN_PASSWORD_LENGTH = 8
_hasher = PasswordHasher()


async def create_user(services: Services, email: str, role: Role, password: str | None = None) -> User:
    """Create the user, or change the role and, if given, the password; return the user. Raises BadRequest."""
    if not 3 <= len(email) <= 254 or email.count("@") != 1 or any(character.isspace() for character in email):
        raise BadRequest(f"`email` must be an e-mail address (got {email!r}).")
    if password is not None and len(password) < MIN_PASSWORD_LENGTH:
        raise BadRequest(f"`password` must be at least {MIN_PASSWORD_LENGTH} characters long (got {len(password)}).")
    password_hash = None if password is None else await asyncio.to_thread(_hasher.hash, password)
    return await services.store.people.put_user(email, role, password_hash)


async def create_token(  # noqa: PLR0913 -- the fields of a token
    services: Services,
    user: User,
    *,
    kind: TokenKind = "api",
    role: Role | None = None,
    name: str = "",
    seconds: float | None = None,
    cache: CacheRule | None = None,
    key_id: int | None = None,
) -> str:
    """Create a token of `user`, and return it. Only its digest is stored, so it cannot be shown again.

    Args:
        services: The dependencies.
        user: The owner.
        kind: The use of the token: API, sign-in link or session.
        role: The role of the token; None for that of the user.
        name: A name for lists.
        seconds: Its lifetime; None for no end.
        cache: Its rule for the response cache; None for that of the model.
        key_id: The upstream key for requests with this token; None for that of the model.

    Raises:
        BadRequest: `role` has more rights than the user.
        NotFound: the user may not use the key.
    """
    role = role or user.role
    if lower_role(role, user.role) != role:
        raise BadRequest(f"`role` must not exceed the role of {user.email}, which is {user.role} (got {role}).")
    if key_id is not None:
        await key_of_user(services, user.id, key_id)
    token = format_token(services.ids.new_secret())
    await services.store.people.add_token(
        user.id, digest(token), kind=kind, name=name, role=role, seconds=seconds, cache=cache, key_id=key_id
    )
    return token


async def sign_in_link(services: Services, user: User) -> str:
    """Return the path of a link that signs `user` in once, within a day."""
    token = await create_token(services, user, kind="signin", name="link", seconds=SIGN_IN_SECONDS)
    return f"/signin/{token.removeprefix(PREFIX)}"


async def identify(services: Services, token: str, kind: TokenKind = "api") -> Caller:
    """Return the caller who holds `token`. Raises Unauthorized."""
    return await services.caches.callers.identify(token, kind, services.clock())


async def sign_in(services: Services, email: str, password: str) -> str:
    """Return a session token. Raises Unauthorized.

    The error and the time are the same for an unknown user and a wrong password.
    """
    user = await services.store.people.user(email)
    password_hash = user.password_hash if user is not None and user.active else None
    is_right = await asyncio.to_thread(_is_password, password_hash, password)
    if user is None or password_hash is None or not is_right:
        raise Unauthorized("The e-mail address or the password is wrong.")
    return await create_token(services, user, kind="session", name="password", seconds=SESSION_SECONDS)


async def sign_in_with_link(services: Services, code: str) -> str:
    """Return a session token for the code of a sign-in link, which works once. Raises Unauthorized."""
    token = PREFIX + code
    caller = await identify(services, token, "signin")
    if not await services.store.people.end_token(digest(token)):
        raise Unauthorized("This sign-in link was used already; ask an admin for a new one.")
    user = await services.store.people.user(caller.email)
    if user is None:
        raise Unauthorized
    return await create_token(services, user, kind="session", name="link", seconds=SESSION_SECONDS)


async def sign_out(services: Services, token: str) -> None:
    """End the session of `token`."""
    await services.store.people.end_token(digest(token))
    services.caches.callers.invalidate()


def _is_password(password_hash: str | None, password: str) -> bool:
    """Verify the password; without a hash, take the same time and return False."""
    try:
        return _hasher.verify(password_hash or _placeholder_hash(), password)
    except (Argon2Error, InvalidHashError):
        return False


@cache
def _placeholder_hash() -> str:
    return _hasher.hash("no user has this password")
