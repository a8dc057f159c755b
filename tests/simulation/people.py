"""In-memory users, tokens, and failed sign-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from signoff.core.access import (
    Role,
    Token,
    TokenKind,
    User,
    check_token_count,
    email_taken,
    has_fewer_rights,
    may_review,
)
from signoff.core.audit import (
    Actor,
    account_bound,
    accounts_unbound,
    change_of,
    sessions_ended,
    token_created,
    token_revoked,
)
from signoff.core.cache import CacheRule
from signoff.core.oidc import ProviderAccount, ProviderSettings, role_at_sign_in, sign_in_kind
from signoff.core.sign_in import SignInCount, SignInDenial, SignInLimit, denial_of, with_attempt, without_attempt
from signoff.core.times import SECOND_US
from signoff.core.transitions import TRANSITIONS
from signoff.errors import Conflict, TokenExpired
from signoff.infra.actor import current_actor
from signoff.store import TransitionRequest
from signoff.stores.people import UserValues
from signoff.stores.schema import events
from signoff.stores.transitions import changed_columns, changes_of, event_of
from simulation.tables import Connection, Tables, Tx, bump, next_state, record


class MemoryPeople:
    """In-memory implementation of `accounts.People`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def user(self, email: str) -> User | None:
        return await self._connection.send(lambda _: self._tables.users.get(email.lower()), writes=False)

    async def users(self, *, after_id: int = 0, limit: int | None = None) -> list[User]:
        users = self._tables.users.values
        return await self._connection.send(
            lambda _: [user for user in users() if user.id > after_id][:limit], writes=False
        )

    async def has_other_reviewer(self, user_id: int) -> bool:
        users = self._tables.users.values
        return await self._connection.send(
            lambda _: any(user.active and user.role != "user" and user.id != user_id for user in users()), writes=False
        )

    async def user_by_id(self, user_id: int) -> User | None:
        user, _ = await self.user_with_token(user_id, 0)
        return user

    async def user_with_token(self, user_id: int, token_id: int) -> tuple[User | None, Token | None]:
        def read(_: Tx) -> tuple[User | None, Token | None]:
            tokens = (token for token in self._tables.tokens.values() if token.user_id == user_id)
            return self._user(user_id), next((token for token in tokens if token.id == token_id), None)

        return await self._connection.send(read, writes=False)

    async def put_user(
        self, email: str, role: Role, password_hash: str | None = None, *, must_be_new: bool = False
    ) -> User:
        actor = current_actor()

        def put(tx: Tx) -> User:
            users = self._tables.users
            if (user := users.get(email.lower())) is not None:
                if must_be_new:
                    raise email_taken(email)
                return self._change(tx, actor, user, UserValues(role=role, password_hash=password_hash))
            user = self._create(tx, email, role, password_hash)
            record(self._tables, tx, actor, change_of("user", user.email, None, user))
            return user

        return await self._connection.send(put, writes=True)

    async def change_user(
        self,
        user_id: int,
        *,
        role: Role | None = None,
        active: bool | None = None,
        password_hash: str | None = None,
    ) -> User | None:
        actor, values = current_actor(), UserValues(role=role, active=active, password_hash=password_hash)

        def change(tx: Tx) -> User | None:
            user = self._user(user_id)
            return None if user is None else self._change(tx, actor, user, values)

        return await self._connection.send(change, writes=True)

    async def user_of_account(self, issuer: str, subject: str) -> User | None:
        return await self._connection.send(lambda _: self._bound(issuer, subject), writes=False)

    async def sign_in(self, account: ProviderAccount, settings: ProviderSettings) -> User:
        actor = current_actor()

        def sign_in(tx: Tx) -> User:
            bound = self._bound(account.issuer, account.subject)
            namesake = None if account.email is None else self._tables.users.get(account.email)
            is_taken = namesake is not None and self._has_account(namesake.id, account.issuer)
            kind = sign_in_kind(account, settings, bound=bound, namesake=namesake, is_taken=is_taken)
            user = bound or namesake
            if user is None:
                user = self._create(tx, account.email or "", account.role or "user", None)
                self._bind(tx, actor, user, account.issuer, account.subject, is_new=True)
                return user
            role = role_at_sign_in(user, account, settings)
            if role != user.role:
                user = self._change(tx, actor, user, UserValues(role=role))
            if kind != "enter":
                self._bind(tx, actor, user, account.issuer, account.subject)
            return user

        return await self._connection.send(sign_in, writes=True)

    async def bind_account(self, user_id: int, issuer: str, subject: str) -> None:
        actor = current_actor()

        def bind(tx: Tx) -> None:
            user = self._user(user_id)
            if user is None or self._bound(issuer, subject) or self._has_account(user_id, issuer):
                raise Conflict("The account, or the user, is bound already.")
            self._bind(tx, actor, user, issuer, subject)

        await self._connection.send(bind, writes=True)

    async def unbind_accounts(self, user_id: int) -> int:
        actor, accounts = current_actor(), self._tables.provider_accounts

        def unbind(tx: Tx) -> int:
            own = [account for account, owner_id in accounts.items() if owner_id == user_id]
            user = self._user(user_id)
            if own and user is not None:
                for account in own:
                    del accounts[account]
                self._end(lambda token: token.user_id == user_id and token.kind != "api")
                record(self._tables, tx, actor, accounts_unbound(user.email, own))
                bump(self._tables, tx, "people")
            return len(own)

        return await self._connection.send(unbind, writes=True)

    async def replace_password_hash(self, user_id: int, old: str, new: str) -> None:
        def replace(tx: Tx) -> None:
            user = self._user(user_id)
            if user is not None and user.password_hash == old:
                self._tables.users[user.email] = msgspec.structs.replace(user, password_hash=new)
                bump(self._tables, tx, "people")

        await self._connection.send(replace, writes=True)

    async def add_token(
        self,
        user_id: int,
        digest: str,
        *,
        kind: TokenKind,
        name: str,
        role: Role,
        seconds: float | None = None,
        cache: CacheRule | None = None,
        key_id: int | None = None,
        password_hash: str | None = None,
    ) -> Token:
        actor = current_actor()

        def add(tx: Tx) -> Token:
            user = self._user(user_id)
            if kind == "session" and (user is None or not user.active or user.password_hash != password_hash):
                raise Conflict("The user was disabled, or got a new password, meanwhile; sign in again.")
            if kind == "api":
                own = (each for each in self._tables.tokens.values() if each.user_id == user_id and each.kind == "api")
                living = (each for each in own if each.active and (each.expires_at or tx.now + 1) > tx.now)
                check_token_count(sum(1 for _ in living) + 1)
            number = len(self._tables.tokens) + 1
            if kind == "signin":
                self._end(lambda token: token.user_id == user_id and token.kind == "signin")
            token = Token(
                id=number,
                digest=digest,
                user_id=user_id,
                kind=kind,
                name=name,
                role=role,
                cache=cache,
                key_id=key_id,
                created_at=tx.now,
                expires_at=None if seconds is None else tx.now + round(seconds * SECOND_US),
            )
            self._tables.tokens[digest] = token
            if kind != "session":
                record(self._tables, tx, actor, token_created(token))
            bump(self._tables, tx, "people")
            return token

        return await self._connection.send(add, writes=True)

    async def token(self, digest: str) -> tuple[Token, User] | None:
        def read(tx: Tx) -> tuple[Token, User] | None:
            token = self._tables.tokens.get(digest)
            user = None if token is None or not token.active else self._user(token.user_id)
            if token is None or user is None or not user.active:
                return None
            if token.expires_at is not None and token.expires_at <= tx.now:
                raise TokenExpired
            return token, user

        return await self._connection.send(read, writes=False)

    async def tokens(
        self, kind: TokenKind, user_id: int | None, *, after_id: int = 0, limit: int = 50
    ) -> list[tuple[Token, User]]:
        def read(tx: Tx) -> list[tuple[Token, User]]:
            users = {user.id: user for user in self._tables.users.values()}
            return [
                (token, users[token.user_id])
                for token in self._tables.tokens.values()
                if token.kind == kind and token.active and token.id > after_id and user_id in {None, token.user_id}
                if kind == "api" or (token.expires_at is not None and token.expires_at > tx.now)
            ][:limit]

        return await self._connection.send(read, writes=False)

    async def end_token(self, digest: str) -> bool:
        def end(tx: Tx) -> bool:
            ended = self._end(lambda token: token.digest == digest)
            if ended:
                bump(self._tables, tx, "people")
            return bool(ended)

        return await self._connection.send(end, writes=True)

    async def revoke_token(self, kind: TokenKind, token_id: int, user_id: int | None) -> bool:
        actor = current_actor()

        def revoke(tx: Tx) -> bool:
            ended = self._end(
                lambda token: (token.kind, token.id) == (kind, token_id) and user_id in {None, token.user_id}
            )
            for token in ended:
                record(self._tables, tx, actor, token_revoked(token))
                bump(self._tables, tx, "people")
            return bool(ended)

        return await self._connection.send(revoke, writes=True)

    async def end_sessions(self, user_id: int) -> int:
        actor = current_actor()

        def end(tx: Tx) -> int:
            bump(self._tables, tx, "people")
            ended = self._end(lambda token: token.user_id == user_id and token.kind != "api")
            if ended and (user := self._user(user_id)) is not None:
                record(self._tables, tx, actor, sessions_ended(user.email, len(ended)))
            return len(ended)

        return await self._connection.send(end, writes=True)

    async def mark_used(self, times: Mapping[int, int]) -> None:
        def mark(_: Tx) -> None:
            for digest, token in self._tables.tokens.items():
                used_at = max(times.get(token.id, 0), token.last_used_at or 0)
                self._tables.tokens[digest] = msgspec.structs.replace(token, last_used_at=used_at or None)

        await self._connection.send(mark, writes=True)

    def _user(self, user_id: int) -> User | None:
        return next((user for user in self._tables.users.values() if user.id == user_id), None)

    def _create(self, tx: Tx, email: str, role: Role, password_hash: str | None) -> User:
        user = User(id=len(self._tables.users) + 1, email=email.lower(), role=role, password_hash=password_hash)
        self._tables.users[user.email] = user
        bump(self._tables, tx, "people")
        return user

    def _bind(self, tx: Tx, actor: Actor, user: User, issuer: str, subject: str, *, is_new: bool = False) -> None:
        self._tables.provider_accounts[issuer, subject] = user.id
        record(self._tables, tx, actor, account_bound(user.email, issuer, subject, user if is_new else None))
        bump(self._tables, tx, "people")

    def _bound(self, issuer: str, subject: str) -> User | None:
        user_id = self._tables.provider_accounts.get((issuer, subject))
        return None if user_id is None else self._user(user_id)

    def _has_account(self, user_id: int, issuer: str) -> bool:
        return any((of, owner) == (issuer, user_id) for (of, _), owner in self._tables.provider_accounts.items())

    def _change(self, tx: Tx, actor: Actor, user: User, new: UserValues) -> User:
        role, active = new.role or user.role, user.active if new.active is None else new.active
        admins = {one.id for one in self._tables.users.values() if one.active and one.role == "admin"}
        if admins == {user.id} and not (active and role == "admin"):
            raise Conflict(f"{user.email} is the last active admin.")
        new_hash = new.password_hash or user.password_hash
        if new_hash != user.password_hash or has_fewer_rights(role, user.role) or not active:
            self._end(lambda token: token.user_id == user.id and token.kind != "api")
        changed = msgspec.structs.replace(user, role=role, active=active, password_hash=new_hash)
        if may_review(user) and not may_review(changed):
            self._end_reviews(tx, user.email, actor.name)
        self._tables.users[user.email] = changed
        record(self._tables, tx, actor, change_of("user", user.email, user, changed))
        bump(self._tables, tx, "people")
        return changed

    def _end_reviews(self, tx: Tx, email: str, actor: str) -> None:
        for job in [job for job in self._tables.jobs.values() if job.status == "human" and job.release_at is None]:
            if job.assignee == email:
                request = TransitionRequest(verb="assign", actor=actor, changes={"assignee": None})
            elif job.assignee is None and job.review_lease == email:
                request = TransitionRequest(verb="leave", actor=actor)
            else:
                continue
            changed = next_state(TRANSITIONS[request.verb], job, request, tx.now)
            tx.add(events, event_of(changed, request.verb, actor, changed_columns(changed, request)))
            tx.jobs[job.id] = changed
            tx.changes.extend(changes_of(changed))

    def _end(self, is_meant: Callable[[Token], bool]) -> list[Token]:
        ended = [token for token in self._tables.tokens.values() if token.active and is_meant(token)]
        for token in ended:
            self._tables.tokens[token.digest] = msgspec.structs.replace(token, active=False)
        return ended


class MemorySignIns:
    """In-memory implementation of `accounts.SignIns`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def begin(self, limits: Sequence[SignInLimit]) -> SignInDenial | None:
        def begin(tx: Tx) -> SignInDenial | None:
            counts = self._tables.sign_in_failures
            denials = (denial_of(limit, counts.get(limit.key, SignInCount()), tx.now) for limit in limits)
            denial = max((denial for denial in denials if denial), key=lambda denial: denial.seconds, default=None)
            if denial is None:
                for limit in limits:
                    counts[limit.key] = with_attempt(limit, counts.get(limit.key, SignInCount()), tx.now)
            return denial

        return await self._connection.send(begin, writes=True)

    async def succeed(self, email: SignInLimit, client: SignInLimit) -> None:
        def succeed(_: Tx) -> None:
            self._tables.sign_in_failures.pop(email.key, None)
            if (count := self._tables.sign_in_failures.get(client.key)) is not None:
                self._tables.sign_in_failures[client.key] = without_attempt(count)

        await self._connection.send(succeed, writes=True)
