"""Cache of the callers behind tokens and e-mail addresses, cleared when users or tokens change."""

import asyncio
import contextlib

import structlog

from signoff.accounts import People
from signoff.core.access import Caller, Token, TokenKind, User, lower_role
from signoff.core.api_tokens import digests_equal, hash_token, is_well_formed
from signoff.errors import TokenExpired, Unauthorized

MAX_ENTRIES = 10_000
USE_SECONDS = 60.0
CLOSE_SECONDS = 2.0
log = structlog.get_logger()


class CallerCache:
    """Callers by token and by e-mail address, and the last uses of tokens that are not recorded yet."""

    def __init__(self, people: People) -> None:
        self._people = people
        self._by_token: dict[tuple[str, TokenKind], Caller] = {}
        self._generation = 0
        self._by_email: dict[str, Caller] = {}
        self._used_at: dict[int, int] = {}
        self._admins: dict[int, bool] = {}

    async def identify(self, token: str, kind: TokenKind, now: int) -> Caller:
        """Return the caller with `token`. `now` is in microseconds since 1970. Raises Unauthorized, TokenExpired."""
        token_digest = hash_token(token)
        caller = self._by_token.get((token_digest, kind))
        if caller is None and not is_well_formed(token):
            raise Unauthorized("The token is malformed: tokens of this server start with `sg_`.")
        caller = caller or await self._load(token_digest, kind)
        if caller is None:
            raise Unauthorized("The token is unknown or revoked; create a new one, or sign in again.")
        _check_not_expired(caller, now)
        self._used_at[caller.token_id] = now
        return caller

    async def refresh(self, caller: Caller, now: int) -> Caller:
        """Return `caller` with the rights that the store gives them at present.

        Raises Unauthorized if the user was disabled or the token was revoked, and TokenExpired. Callers without a
        token, such as anonymous ones, have the rights of the settings.
        """
        if caller.token_id == 0:
            return caller
        user, token = await self._people.user_with_token(caller.user_id, caller.token_id)
        if user is None or token is None or not user.active or not token.active:
            raise Unauthorized("The token was revoked, or its user disabled; create a new one, or sign in again.")
        current = _caller(token, user)
        _check_not_expired(current, now)
        return current

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
        user = await self._people.user_by_id(user_id)
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

    async def run(self) -> None:
        """Record the last uses of tokens every USE_SECONDS, and when cancelled. Never returns."""
        try:
            while True:
                await asyncio.sleep(USE_SECONDS)
                await self.record_uses()
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self.record_uses()

    async def record_uses(self) -> None:
        """Record the last use of each token that was used since the last record; a failure costs only these times."""
        used_at, self._used_at = self._used_at, {}
        if not used_at:
            return
        try:
            await self._people.mark_used(used_at)
        except Exception as error:  # noqa: BLE001 -- the store is unavailable; later uses are recorded later
            log.warning("token_use_not_recorded", error=repr(error))

    async def _load(self, token_digest: str, kind: TokenKind) -> Caller | None:
        generation = self._generation
        row = await self._people.token(token_digest)
        if row is None or not digests_equal(row[0].digest, token_digest) or row[0].kind != kind:
            return None
        caller = _caller(*row)
        if len(self._by_token) >= MAX_ENTRIES:
            self._by_token.clear()
        if generation == self._generation:  # otherwise the row may be out of date
            self._by_token[token_digest, kind] = caller
        return caller


def _caller(token: Token, user: User) -> Caller:
    return Caller(
        user_id=user.id,
        token_id=token.id,
        role=lower_role(token.role, user.role),
        email=user.email,
        expires_at=token.expires_at,
        cache=token.cache,
        key_id=token.key_id,
        kind=token.kind,
    )


def _check_not_expired(caller: Caller, now: int) -> None:
    if caller.expires_at is not None and caller.expires_at <= now:
        raise TokenExpired
