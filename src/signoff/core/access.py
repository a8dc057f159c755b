"""Users, tokens, upstream keys and callers, and the rules of what each role may do."""

from typing import Literal

import msgspec

from signoff.core.cache import CacheRule
from signoff.errors import Conflict, Forbidden, Unauthorized

Role = Literal["admin", "reviewer", "user"]
# From the most rights to the fewest.
ROLES: tuple[Role, ...] = ("admin", "reviewer", "user")
MAX_KEYS_OF_USER = 1000
# API tokens of a user that are neither revoked nor expired.
MAX_TOKENS_OF_USER = 1000


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A person or a program that can sign in or own tokens."""

    id: int
    """Number of the user, from 1."""
    email: str
    """Email address, in lower case; no two users have the same."""
    role: Role
    """Role of the user, which none of their tokens exceeds."""
    password_hash: str | None = None
    """Argon2id hash; None for a user who cannot sign in by password."""
    active: bool = True
    """False once an admin has disabled the user."""


# Token for programs, one-time link to sign in, session of a browser.
TokenKind = Literal["api", "signin", "session"]


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that stands for a user. Only its digest is stored."""

    id: int
    """Number of the token, from 1."""
    digest: str
    """SHA-256 of the token, in hexadecimal."""
    user_id: int
    """User for whom it stands."""
    kind: TokenKind
    """Use of the token."""
    name: str
    """Name that its creator gave it, for lists; it need not be unique."""
    role: Role
    """Role of its requests, capped at the role of its user."""
    active: bool = True
    """False once it is revoked, or a link was used."""
    expires_at: int | None = None
    """Microseconds since 1970, UTC; None for a token that does not expire."""
    cache: CacheRule | None = None
    """Cache rule of its requests; the rule of a model wins over it, and None leaves the choice to the door."""
    key_id: int | None = None
    """Upstream key for its requests that name none; None stands for the key of the model."""
    created_at: int = 0
    """Microseconds since 1970, UTC."""
    last_used_at: int | None = None
    """Microseconds since 1970, UTC, of the last use, to the minute; None if it was never used."""


class UpstreamKey(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a stored upstream key, without its value."""

    id: int
    """Number of the key, from 1."""
    user_id: int | None
    """Owner; None for a key that belongs to a model."""
    name: str
    """Name that the owner gave it, for lists."""
    is_shared: bool
    """True if an admin lets every user send requests with it."""
    created_at: int
    """Microseconds since 1970, UTC."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated user, as seen through one of their tokens."""

    user_id: int
    """User; 0 for the anonymous caller and for commands, -1 for messages of a stream without a user."""
    token_id: int
    """Token of the request; 0 without one."""
    role: Role
    """The lower of the roles of the user and the token."""
    email: str
    """Email address of the user; without one `anonymous`, `operator` or `stream:NAME`."""
    expires_at: int | None = None
    """Microseconds since 1970, UTC, at which the token expires; None for never."""
    cache: CacheRule | None = None
    """Cache rule of the token; see `Token.cache`."""
    key_id: int | None = None
    """Upstream key of the token; see `Token.key_id`."""
    kind: TokenKind = "api"
    """Kind of the token."""
    is_anonymous: bool = False
    """True for a caller without a token."""

    @property
    def actor(self) -> str:
        """Name of this caller in events."""
        return f"user:{self.email}"


def anonymous_caller(role: Role) -> Caller:
    """Return the caller for requests without a token."""
    return Caller(user_id=0, token_id=0, role=role, email="anonymous", is_anonymous=True)


def check_identified(caller: Caller) -> None:
    """Raise Unauthorized for an anonymous caller, whatever its role.

    Changes of the configuration, of upstream keys and of saved views need a user who is accountable for them.
    """
    if caller.is_anonymous:
        raise Unauthorized("A caller without a token cannot do this; send `Authorization: Bearer TOKEN`.")


def may_review(caller: Caller | User) -> bool:
    """Return True if `caller`, or an active user, may see held answers and decide on them."""
    is_active = caller.active if isinstance(caller, User) else True
    return is_active and caller.role in {"admin", "reviewer"}


def check_may_review(caller: Caller) -> None:
    """Raise Forbidden unless `caller` may review."""
    if not may_review(caller):
        raise Forbidden("This needs the role `reviewer` or `admin`; use the token of a reviewer or an admin.")


def public_actor(caller: Caller, actor: str) -> str:
    """Return the name of an actor as `caller` may see it: not the address of another user or of a process.

    >>> public_actor(Caller(user_id=1, token_id=1, role="user", email="ann@x.org"), "worker:host:123")
    'worker'
    """
    if may_review(caller) or actor == caller.actor:
        return actor
    kind = actor.partition(":")[0]
    return "reviewer" if kind == "user" else kind


def check_admin(caller: Caller) -> None:
    """Raise Forbidden unless `caller` is an admin."""
    if caller.role != "admin":
        raise Forbidden("This needs the role `admin`; use the token of an admin.")


def may_see(caller: Caller, owner_id: int | None) -> bool:
    """Return True if `caller` may know that a job of the user `owner_id` exists."""
    return may_review(caller) or caller.user_id == owner_id


def may_use(user_id: int, key: UpstreamKey) -> bool:
    """Return True if requests of this user may be sent with `key`: their own, or one that an admin shares."""
    return key.user_id is not None and (key.is_shared or key.user_id == user_id)


def check_key_count(number: int) -> None:
    """Raise Conflict if a user would have more upstream keys than one user may have."""
    if number > MAX_KEYS_OF_USER:
        raise Conflict(f"A user may have at most {MAX_KEYS_OF_USER} upstream keys; remove some of them.")


def email_taken(email: str) -> Conflict:
    """Return the error of a new user whose e-mail address another user has."""
    return Conflict(f"There is a user with the e-mail address {email} already; change that user instead.")


def check_token_count(number: int) -> None:
    """Raise Conflict if a user would have more API tokens that are alive than one user may have."""
    if number > MAX_TOKENS_OF_USER:
        raise Conflict(f"A user may have at most {MAX_TOKENS_OF_USER} API tokens; revoke some of them.")


def may_remove(caller: Caller, key: UpstreamKey) -> bool:
    """Return True if `caller` may delete `key`, and see that it exists while it is not shared."""
    return key.user_id is not None and (caller.role == "admin" or key.user_id == caller.user_id)


def may_manage(caller: Caller, user_id: int) -> bool:
    """Return True if `caller` may list and revoke the tokens and sessions of the user `user_id`."""
    return caller.role == "admin" or (caller.user_id == user_id and caller.user_id > 0)


def has_fewer_rights(role: Role, than: Role) -> bool:
    """Return True if `role` allows less than the role `than`."""
    return ROLES.index(role) > ROLES.index(than)


def lower_role(one: Role, other: Role) -> Role:
    """Return the role with fewer rights, since a token never exceeds its user."""
    return one if has_fewer_rights(one, other) else other
