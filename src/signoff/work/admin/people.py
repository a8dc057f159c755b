"""Users and their tokens."""

import msgspec

from signoff.core.access import (
    Caller,
    Role,
    Token,
    TokenKind,
    User,
    check_admin,
    email_taken,
    lower_role,
    may_manage,
)
from signoff.core.api_tokens import PREFIX, format_token, hash_token
from signoff.core.cache import CacheRule
from signoff.errors import BadRequest, NotFound
from signoff.work.admin.keys import key_of_user
from signoff.work.services import Services

DAY_SECONDS = 24 * 3600.0
# Longest lifetime of a token; a later end could not be written as a date.
MAX_DAYS = 36_500
MAX_TOKEN_NAME_LENGTH = 200
SIGN_IN_SECONDS = DAY_SECONDS
MIN_PASSWORD_LENGTH, MAX_PASSWORD_LENGTH = 8, 1024
MAX_EMAIL_LENGTH = 254
MAX_ID = 2**31 - 1


class NewUser(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new user, and the body of `POST /api/users`."""

    email: str
    """E-mail address, which no other user has."""
    role: Role = "user"
    """Role of the user."""
    password: str | None = None
    """Password, of 8 to 1024 characters; None for none, so that the user signs in by a link or a provider."""


class UserChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Change of a user, and the body of `PATCH /api/users/{user}`."""

    role: Role | None = None
    """New role; None keeps the present one."""
    active: bool | None = None
    """False to disable the user, True to enable them again; None changes nothing."""
    password: str | None = None
    """New password, of 8 to 1024 characters; None keeps the present one."""


def is_email(text: str) -> bool:
    """Return True if `text` can be an e-mail address."""
    return 3 <= len(text) <= MAX_EMAIL_LENGTH and text.count("@") == 1 and not any(map(str.isspace, text))


async def create_user(services: Services, email: str, role: Role, password: str | None = None) -> User:
    """Create the user, or change the role and, if given, the password; return the user.

    Raises BadRequest, and Conflict if no active admin would be left.
    """
    _check_email(email)
    return await services.store.people.put_user(email, role, await _password_hash(services, password))


async def add_user(services: Services, caller: Caller, new: NewUser) -> User:
    """Create a user who does not exist yet, for an admin, and return them.

    Raises Forbidden, BadRequest, and Conflict if the address is taken.
    """
    check_admin(caller)
    _check_email(new.email)
    if await services.store.people.user(new.email) is not None:  # before the password is hashed, which takes time
        raise email_taken(new.email)
    password_hash = await _password_hash(services, new.password)
    return await services.store.people.put_user(new.email, new.role, password_hash, must_be_new=True)


def _check_email(email: str) -> None:
    if not is_email(email):
        raise BadRequest(f"`email` must be an e-mail address (got {email[: MAX_EMAIL_LENGTH + 1]!r}).")


async def _password_hash(services: Services, password: str | None) -> str | None:
    """Return the hash of a new password; None for none. Raises BadRequest."""
    if password is None:
        return None
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        limits = f"{MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH}"
        raise BadRequest(f"`password` must be {limits} characters long (got {len(password)}).")
    return await services.runtime.passwords.hash(password)


async def list_users(services: Services, caller: Caller, *, after_id: int = 0, limit: int = 50) -> list[User]:
    """Return the users that `caller` may see, ordered by id: all for an admin, themselves for others."""
    if caller.role == "admin":
        return await services.store.people.users(after_id=after_id, limit=limit)
    user = await services.store.people.user(caller.email)
    return [user] if user is not None and user.id > after_id else []


async def change_user(services: Services, caller: Caller, user_id: int, change: UserChange) -> User:
    """Change a user and return them: fewer rights and a new password end their sessions.

    Raises Forbidden, BadRequest, NotFound, Conflict.
    """
    check_admin(caller)
    password_hash = await _password_hash(services, change.password)
    if not 0 < user_id <= MAX_ID:
        raise _no_user(user_id)
    user = await services.store.people.change_user(
        user_id, role=change.role, active=change.active, password_hash=password_hash
    )
    if user is None:
        raise _no_user(user_id)
    return user


async def find_user(services: Services, caller: Caller, key: str) -> User:
    """Return the user with the id or the e-mail address `key`, for an admin. Raises Forbidden, NotFound."""
    check_admin(caller)
    if key.isascii() and key.isdigit():
        return await get_user(services, caller, int(key) if len(key) <= len(str(MAX_ID)) else 0)
    user = await services.store.people.user(key)
    if user is None:
        raise NotFound(f"There is no user {key[:MAX_EMAIL_LENGTH]!r}; list them with `GET /api/users`.")
    return user


async def user_with_email(services: Services, email: str) -> User:
    """Return the user with this e-mail address. Raises NotFound."""
    user = await services.store.people.user(email)
    if user is None:
        raise NotFound(f"There is no user {email!r}; create one with: signoff user create {email}")
    return user


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
        kind: The use of the token: API, sign-in link or session. A new sign-in link ends the user's former ones.
        role: The role of the token; None for that of the user.
        name: A name for lists.
        seconds: Its lifetime; None for no end.
        cache: Its rule for the response cache; None for that of the model.
        key_id: The upstream key for requests with this token; None for that of the model.

    Raises:
        BadRequest: `role` has more rights than the user, the user is disabled, or `name` or `seconds` is too long.
        NotFound: the user may not use the key.
        Conflict: the token is a session, and the user was disabled or got a new password since `user` was read; or it
            is an API token, and the user has too many.
    """
    if not user.active:
        raise BadRequest(f"{user.email} is disabled; enable the user with: signoff user enable {user.email}")
    _check_bounds(name, seconds)
    role = role or user.role
    if lower_role(role, user.role) != role:
        raise BadRequest(f"`role` must not exceed the role of {user.email}, which is {user.role} (got {role}).")
    if key_id is not None:
        await key_of_user(services, user.id, key_id)
    token = format_token(services.ids.new_secret())
    await services.store.people.add_token(
        user.id,
        hash_token(token),
        kind=kind,
        name=name,
        role=role,
        seconds=seconds,
        cache=cache,
        key_id=key_id,
        password_hash=user.password_hash,
    )
    return token


def _check_bounds(name: str, seconds: float | None) -> None:
    """Raise BadRequest if a token would have too long a name, or too long a life."""
    if len(name) > MAX_TOKEN_NAME_LENGTH:
        raise BadRequest(f"`name` must be at most {MAX_TOKEN_NAME_LENGTH} characters long (got {len(name)}).")
    if seconds is not None and not seconds <= MAX_DAYS * DAY_SECONDS:
        raise BadRequest(f"`days` must be at most {MAX_DAYS} (got {seconds / DAY_SECONDS:g}).")


async def sign_in_link(services: Services, user: User) -> str:
    """Return the path of a link that signs `user` in once, within a day. It ends the user's former links."""
    token = await create_token(services, user, kind="signin", name="link", seconds=SIGN_IN_SECONDS)
    return f"/signin/{token.removeprefix(PREFIX)}"


async def invite_user(services: Services, caller: Caller, email: str, role: Role) -> str:
    """Create a user who does not exist yet, and return the path of their sign-in link.

    Raises Forbidden, BadRequest, and Conflict if the address is taken.
    """
    return await sign_in_link(services, await add_user(services, caller, NewUser(email=email, role=role)))


async def renew_link(services: Services, caller: Caller, user_id: int) -> str:
    """Return the path of a new sign-in link of a user; their former links end.

    Raises Forbidden, NotFound, and BadRequest if the user is disabled.
    """
    check_admin(caller)
    return await sign_in_link(services, await get_user(services, caller, user_id))


async def get_user(services: Services, caller: Caller, user_id: int) -> User:
    """Return a user, for an admin. Raises Forbidden, NotFound."""
    check_admin(caller)
    users = await services.store.people.users(after_id=user_id - 1, limit=1) if 0 < user_id <= MAX_ID else []
    if not users or users[0].id != user_id:
        raise _no_user(user_id)
    return users[0]


def _no_user(user_id: int) -> NotFound:
    return NotFound(f"There is no user with the id {user_id}; list them with `GET /api/users`.")


async def list_sessions(
    services: Services, caller: Caller, user_id: int, *, after_id: int = 0, limit: int = 50
) -> list[Token]:
    """Return the sessions of a user that have not ended, for an admin. Raises Forbidden."""
    check_admin(caller)
    rows = await services.store.people.tokens("session", user_id, after_id=after_id, limit=limit)
    return [session for session, _ in rows]


async def list_tokens(
    services: Services, caller: Caller, kind: TokenKind, *, after_id: int = 0, limit: int = 50
) -> list[tuple[Token, User]]:
    """Return the active tokens of this kind that `caller` may see: all for an admin, their own for others."""
    user_id = None if caller.role == "admin" else caller.user_id
    return await services.store.people.tokens(kind, user_id, after_id=after_id, limit=limit)


async def revoke_token(services: Services, caller: Caller, kind: TokenKind, token_id: int) -> None:
    """End a token, or a session, that `caller` may see. Raises NotFound."""
    user_id = None if caller.role == "admin" else caller.user_id
    if not 0 < token_id <= MAX_ID or not await services.store.people.revoke_token(kind, token_id, user_id):
        name = "session" if kind == "session" else "token"
        raise NotFound(f"There is no {name} with the id {token_id}, or it was revoked already.")


async def end_sessions(services: Services, caller: Caller, user_id: int) -> int:
    """End all sessions and sign-in links of a user, and return their number. Raises NotFound."""
    if not may_manage(caller, user_id):
        raise NotFound(f"There is no user with the id {user_id}, or you may not end their sessions.")
    return await services.store.people.end_sessions(user_id)


async def identify(services: Services, token: str, kind: TokenKind = "api") -> Caller:
    """Return the caller who holds `token`. Raises Unauthorized, TokenExpired."""
    return await services.caches.callers.identify(token, kind, services.clock())


async def refresh(services: Services, caller: Caller) -> Caller:
    """Return `caller` with their present rights, for a request that goes on for long. Raises Unauthorized."""
    return await services.caches.callers.refresh(caller, services.clock())
