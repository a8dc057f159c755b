"""Who is asking, and what they may do."""

from __future__ import annotations

from typing import Literal

import msgspec

from signoff.core.cache import CacheRule
from signoff.errors import Forbidden

Role = Literal["admin", "reviewer", "user"]
ROLES: tuple[Role, ...] = ("admin", "reviewer", "user")


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A person or a program with a name, a role, and perhaps a password (argon2id)."""

    id: int
    email: str
    role: Role
    password_hash: str | None = None
    active: bool = True


TokenKind = Literal["api", "signin", "session"]


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that stands for a user; only its SHA-256 is kept. `expires_at` is in microseconds.

    `key_id`: the upstream key that is used for all that is asked with it.
    """

    id: int
    digest: str
    user_id: int
    kind: TokenKind
    name: str
    role: Role
    active: bool = True
    expires_at: int | None = None
    cache: CacheRule | None = None
    key_id: int | None = None


class UpstreamKey(msgspec.Struct, frozen=True, kw_only=True):
    """What may be known of an upstream's key: never its value. `user_id` None: a model's own, which is nobody's."""

    id: int
    user_id: int | None
    name: str
    is_shared: bool
    created_at: int


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever stands at a door: a user, through one of their tokens."""

    user_id: int
    token_id: int
    role: Role
    email: str
    expires_at: int | None = None
    cache: CacheRule | None = None
    key_id: int | None = None

    @property
    def actor(self) -> str:
        """How this caller is named in events."""
        return f"user:{self.email}"


def may_review(caller: Caller) -> bool:
    """Whether this caller may see held answers and decide on them."""
    return caller.role in {"admin", "reviewer"}


def check_admin(caller: Caller) -> None:
    """Raises Forbidden for all others."""
    if caller.role != "admin":
        raise Forbidden("Only an admin may do that.")


def may_see(caller: Caller, owner_id: int | None) -> bool:
    """Whether this caller may know that a job of `owner_id` exists."""
    return may_review(caller) or caller.user_id == owner_id


def may_use(user_id: int, key: UpstreamKey) -> bool:
    """Whether this user's requests may be sent with that key: their own, or one that an admin shares. Nobody else's."""
    return key.user_id is not None and (key.is_shared or key.user_id == user_id)


def may_remove(caller: Caller, key: UpstreamKey) -> bool:
    """Whether this caller may end that key, and see that it exists while it is not shared."""
    return key.user_id is not None and (caller.role == "admin" or key.user_id == caller.user_id)


def lower_role(one: Role, other: Role) -> Role:
    """The role with the fewer rights: a token never exceeds its user."""
    return one if ROLES.index(one) > ROLES.index(other) else other
