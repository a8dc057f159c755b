"""People: users, the tokens that stand for them, and signing in."""

from __future__ import annotations

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
    """The user, made or changed. Raises BadRequest."""
    if not 3 <= len(email) <= 254 or email.count("@") != 1 or any(letter.isspace() for letter in email):
        raise BadRequest(f"{email!r} is not an e-mail address.")
    if password is not None and len(password) < MIN_PASSWORD_LENGTH:
        raise BadRequest(f"A password has at least {MIN_PASSWORD_LENGTH} characters.")
    password_hash = None if password is None else await asyncio.to_thread(_hasher.hash, password)
    return await services.store.people.put_user(email, role, password_hash)


async def create_token(  # noqa: PLR0913 -- each is a side of a token
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
    """A new token of `user`, with their rights or the fewer ones of `role`. This is the only time that it is seen.

    `key_id`: the upstream key that is used for what is asked with it. Raises BadRequest when `role` has more rights
    than the user, NotFound when the key is not theirs to use.
    """
    role = role or user.role
    if lower_role(role, user.role) != role:
        raise BadRequest(f"{user.email} is a {user.role}; a token cannot have the rights of a {role}.")
    if key_id is not None:
        await key_of_user(services, user.id, key_id)
    token = format_token(services.ids.new_secret())
    await services.store.people.add_token(
        user.id, digest(token), kind=kind, name=name, role=role, seconds=seconds, cache=cache, key_id=key_id
    )
    return token


async def sign_in_link(services: Services, user: User) -> str:
    """The path of a link that signs `user` in once, within a day."""
    token = await create_token(services, user, kind="signin", name="link", seconds=SIGN_IN_SECONDS)
    return f"/signin/{token.removeprefix(PREFIX)}"


async def identify(services: Services, token: str, kind: TokenKind = "api") -> Caller:
    """Whoever holds `token`. Raises Unauthorized."""
    return await services.caches.callers.identify(token, kind, services.clock())


async def sign_in(services: Services, email: str, password: str) -> str:
    """A session token. Raises Unauthorized, in the same words and time whether the user exists or not."""
    user = await services.store.people.user(email)
    known = user.password_hash if user is not None and user.active else None
    right = await asyncio.to_thread(_is_right, known, password)
    if user is None or known is None or not right:
        raise Unauthorized("The e-mail address or the password is wrong.")
    return await create_token(services, user, kind="session", name="password", seconds=SESSION_SECONDS)


async def sign_in_with_link(services: Services, code: str) -> str:
    """A session token for the last part of a one-time link, which works once. Raises Unauthorized."""
    token = PREFIX + code
    caller = await identify(services, token, "signin")
    if not await services.store.people.end_token(digest(token)):
        raise Unauthorized("This link was used already.")
    user = await services.store.people.user(caller.email)
    if user is None:
        raise Unauthorized
    return await create_token(services, user, kind="session", name="link", seconds=SESSION_SECONDS)


async def sign_out(services: Services, token: str) -> None:
    """Ends a session."""
    await services.store.people.end_token(digest(token))
    services.caches.callers.invalidate()


def _is_right(password_hash: str | None, password: str) -> bool:
    """An unknown address takes as long as a known one."""
    try:
        return _hasher.verify(password_hash or _nobody(), password)
    except (Argon2Error, InvalidHashError):
        return False


@cache
def _nobody() -> str:
    return _hasher.hash("nobody has this password")
