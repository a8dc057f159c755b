"""Who is asking, and what they may do."""

from __future__ import annotations

from typing import Literal

import msgspec

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
    """A secret that stands for a user; only its SHA-256 is kept. `expires_at` is in microseconds."""

    id: int
    digest: str
    user_id: int
    kind: TokenKind
    name: str
    role: Role
    active: bool = True
    expires_at: int | None = None


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever stands at a door: a user, through one of their tokens."""

    user_id: int
    token_id: int
    role: Role
    email: str
    expires_at: int | None = None

    @property
    def actor(self) -> str:
        """How this caller is named in events."""
        return f"user:{self.email}"


def may_review(caller: Caller) -> bool:
    """Whether this caller may see held answers and decide on them."""
    return caller.role in {"admin", "reviewer"}


def may_see(caller: Caller, owner_id: int | None) -> bool:
    """Whether this caller may know that a job of `owner_id` exists."""
    return may_review(caller) or caller.user_id == owner_id


def least(one: Role, other: Role) -> Role:
    """The role with the fewer rights: a token never exceeds its user."""
    return one if ROLES.index(one) > ROLES.index(other) else other
