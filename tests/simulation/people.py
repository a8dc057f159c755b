"""In-memory users and tokens."""

from __future__ import annotations

import msgspec

from signoff.core.access import Role, Token, TokenKind, User
from signoff.core.cache import CacheRule
from signoff.stores.transitions import SECOND
from simulation.tables import Connection, Tables, Tx, bump


class MemoryPeople:
    """In-memory implementation of `accounts.People`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def user(self, email: str) -> User | None:
        return await self._connection.send(lambda _: self._tables.users.get(email.lower()), writes=False)

    async def users(self) -> list[User]:
        return await self._connection.send(lambda _: list(self._tables.users.values()), writes=False)

    async def owner(self, user_id: int, token_id: int) -> tuple[User | None, Token | None]:
        def read(_: Tx) -> tuple[User | None, Token | None]:
            user = next((user for user in self._tables.users.values() if user.id == user_id), None)
            tokens = (token for token in self._tables.tokens.values() if token.user_id == user_id)
            return user, next((token for token in tokens if token.id == token_id), None)

        return await self._connection.send(read, writes=False)

    async def put_user(self, email: str, role: Role, password_hash: str | None = None) -> User:
        def put(tx: Tx) -> User:
            users = self._tables.users
            user = users.get(email.lower()) or User(id=len(users) + 1, email=email.lower(), role=role)
            new_hash = password_hash or user.password_hash
            users[user.email] = msgspec.structs.replace(user, role=role, active=True, password_hash=new_hash)
            bump(self._tables, tx, "people")
            return users[user.email]

        return await self._connection.send(put, writes=True)

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
    ) -> Token:
        def add(tx: Tx) -> Token:
            number = len(self._tables.tokens) + 1
            expires_at = None if seconds is None else tx.now + round(seconds * SECOND)
            token = Token(
                id=number, digest=digest, user_id=user_id, kind=kind, name=name, role=role, cache=cache, key_id=key_id
            )
            self._tables.tokens[digest] = msgspec.structs.replace(
                token, expires_at=expires_at, cache=cache, key_id=key_id
            )
            bump(self._tables, tx, "people")
            return self._tables.tokens[digest]

        return await self._connection.send(add, writes=True)

    async def token(self, digest: str) -> tuple[Token, User] | None:
        def read(tx: Tx) -> tuple[Token, User] | None:
            token = self._tables.tokens.get(digest)
            if token is None or not token.active or (token.expires_at is not None and token.expires_at <= tx.now):
                return None
            users = self._tables.users.values()
            return next(((token, user) for user in users if user.id == token.user_id and user.active), None)

        return await self._connection.send(read, writes=False)

    async def end_token(self, digest: str) -> bool:
        def end(tx: Tx) -> bool:
            token = self._tables.tokens.get(digest)
            if token is None or not token.active:
                return False
            self._tables.tokens[digest] = msgspec.structs.replace(token, active=False)
            bump(self._tables, tx, "people")
            return True

        return await self._connection.send(end, writes=True)
