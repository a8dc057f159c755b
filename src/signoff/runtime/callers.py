"""The callers that this process has met: a copy of the store's tokens, dropped when people change."""

from __future__ import annotations

from signoff.core.access import Caller, TokenKind, lower_role
from signoff.core.api_tokens import digest, digests_equal, is_well_formed
from signoff.errors import Unauthorized
from signoff.store import People

REMEMBERED = 10_000


class CallerCache:
    """Who stands behind a token."""

    def __init__(self, people: People) -> None:
        self._people = people
        self._known: dict[tuple[str, TokenKind], Caller] = {}
        self._generation = 0
        self._named: dict[str, Caller] = {}

    async def identify(self, token: str, kind: TokenKind, now: int) -> Caller:
        """The caller with `token`; `now` in microseconds. Raises Unauthorized."""
        name = digest(token)
        caller = self._known.get((name, kind))
        if caller is None and not is_well_formed(token):
            raise Unauthorized("This is not a token of Signoff's; they begin with sg_.")
        caller = caller or await self._look_up(name, kind)
        if caller is None or (caller.expires_at is not None and caller.expires_at <= now):
            raise Unauthorized("This token is not valid (any more).")
        return caller

    def invalidate(self) -> None:
        """The copy is out of date."""
        self._generation += 1
        self._known.clear()
        self._named.clear()

    async def by_email(self, email: str) -> Caller | None:
        """The user with that e-mail address, without a token, if there is one and they are active."""
        known = self._named.get(email)
        if known is not None:
            return known
        age = self._generation
        user = await self._people.user(email)
        if user is None or not user.active:
            return None
        caller = Caller(user_id=user.id, token_id=0, role=user.role, email=user.email)
        if age == self._generation:  # else what was read may be out of date already
            self._named[email] = caller
        return caller

    async def _look_up(self, name: str, kind: TokenKind) -> Caller | None:
        age = self._generation
        found = await self._people.token(name)
        if found is None or not digests_equal(found[0].digest, name) or found[0].kind != kind:
            return None
        token, user = found
        caller = Caller(
            user_id=user.id,
            token_id=token.id,
            role=lower_role(token.role, user.role),
            email=user.email,
            expires_at=token.expires_at,
            cache=token.cache,
            key_id=token.key_id,
        )
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        if age == self._generation:  # else it may have changed since it was read
            self._known[name, kind] = caller
        return caller
