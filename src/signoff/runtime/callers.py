"""Cache of the callers behind tokens and e-mail addresses, cleared when users or tokens change."""

from signoff.accounts import People
from signoff.core.access import Caller, TokenKind, lower_role
from signoff.core.api_tokens import digest, digests_equal, is_well_formed
from signoff.errors import Unauthorized

MAX_ENTRIES = 10_000


class CallerCache:
    """Callers by token and by e-mail address."""

    def __init__(self, people: People) -> None:
        self._people = people
        self._by_token: dict[tuple[str, TokenKind], Caller] = {}
        self._generation = 0
        self._by_email: dict[str, Caller] = {}
        self._admins: dict[int, bool] = {}

    async def identify(self, token: str, kind: TokenKind, now: int) -> Caller:
        """Return the caller with `token`. `now` is in microseconds since 1970. Raises Unauthorized."""
        token_digest = digest(token)
        caller = self._by_token.get((token_digest, kind))
        if caller is None and not is_well_formed(token):
            raise Unauthorized("The token is malformed: tokens of this server start with `sg_`.")
        caller = caller or await self._load(token_digest, kind)
        if caller is None or (caller.expires_at is not None and caller.expires_at <= now):
            raise Unauthorized("The token is unknown, revoked or expired.")
        return caller

    def invalidate(self) -> None:
        """Clear the cache."""
        self._generation += 1
        self._by_token.clear()
        self._by_email.clear()
        self._admins.clear()

    async def is_admin(self, user_id: int) -> bool:
        """Return True if the user is active and an admin."""
        cached = self._admins.get(user_id)
        if cached is not None:
            return cached
        generation = self._generation
        user, _ = await self._people.owner(user_id, 0)
        is_admin = user is not None and user.active and user.role == "admin"
        if generation == self._generation:  # otherwise the row may be out of date
            if len(self._admins) >= MAX_ENTRIES:
                self._admins.clear()
            self._admins[user_id] = is_admin
        return is_admin

    async def by_email(self, email: str) -> Caller | None:
        """Return the active user with that e-mail address, without a token; None if there is none."""
        cached = self._by_email.get(email)
        if cached is not None:
            return cached
        generation = self._generation
        user = await self._people.user(email)
        if user is None or not user.active:
            return None
        caller = Caller(user_id=user.id, token_id=0, role=user.role, email=user.email)
        if generation == self._generation:  # otherwise the row may be out of date
            self._by_email[email] = caller
        return caller

    async def _load(self, token_digest: str, kind: TokenKind) -> Caller | None:
        generation = self._generation
        row = await self._people.token(token_digest)
        if row is None or not digests_equal(row[0].digest, token_digest) or row[0].kind != kind:
            return None
        token, user = row
        caller = Caller(
            user_id=user.id,
            token_id=token.id,
            role=lower_role(token.role, user.role),
            email=user.email,
            expires_at=token.expires_at,
            cache=token.cache,
            key_id=token.key_id,
        )
        if len(self._by_token) >= MAX_ENTRIES:
            self._by_token.clear()
        if generation == self._generation:  # otherwise the row may be out of date
            self._by_token[token_digest, kind] = caller
        return caller
