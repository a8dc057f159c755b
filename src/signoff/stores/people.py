"""Users and their tokens, in SQL."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from signoff.core.access import Role, Token, TokenKind, User
from signoff.core.cache import CacheRule
from signoff.stores.database import Database
from signoff.stores.schema import tokens, users
from signoff.stores.versions import bump, change
from signoff.stores.writer import Tx

_USER = tuple(users.c)
_TOKEN = tuple(column for column in tokens.c if column.name != "created_at")


class SqlPeople:
    """Users and tokens in a SQL database; see `accounts.People`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def user(self, email: str) -> User | None:
        """See `accounts.People`."""
        query = sa.select(*_USER).where(users.c.email == email.lower())
        row = await self._database.read(lambda conn, _: conn.execute(query).mappings().one_or_none())
        return User(**row) if row else None

    async def users(self) -> list[User]:
        """See `accounts.People`."""
        query = sa.select(*_USER).order_by(users.c.id)
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [User(**row) for row in rows]

    async def owner(self, user_id: int, token_id: int) -> tuple[User | None, Token | None]:
        """See `accounts.People`."""
        user_query = sa.select(*_USER).where(users.c.id == user_id)
        token_query = sa.select(*_TOKEN).where(tokens.c.id == token_id, tokens.c.user_id == user_id)

        def read(conn: sa.Connection, _: Any) -> tuple[User | None, Token | None]:
            user = conn.execute(user_query).mappings().one_or_none()
            token = conn.execute(token_query).mappings().one_or_none()
            return (User(**user) if user else None), (Token(**token) if token else None)

        return await self._database.read(read)

    async def put_user(self, email: str, role: Role, password_hash: str | None = None) -> User:
        """See `accounts.People`."""
        values: dict[str, Any] = {"role": role, "active": True}
        if password_hash is not None:
            values["password_hash"] = password_hash

        def put(tx: Tx) -> User:
            bump(tx, "people")
            update = sa.update(users).where(users.c.email == email.lower()).values(values).returning(*_USER)
            row = tx.conn.execute(update).mappings().one_or_none()
            if row is None:
                insert = sa.insert(users).values(email=email.lower(), **values).returning(*_USER)
                row = tx.conn.execute(insert).mappings().one()
            return User(**row)

        try:
            return await self._database.write(put)
        except IntegrityError:  # another process inserted the user at the same time: now there is a row to update
            return await self._database.write(put)

    async def add_token(  # noqa: PLR0913 -- one parameter for each attribute of a token
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
        """See `accounts.People`."""

        def add(tx: Tx) -> Token:
            bump(tx, "people")
            values: dict[str, Any] = {"user_id": user_id, "kind": kind, "name": name, "role": role, "active": True}
            values["cache"] = cache
            values["key_id"] = key_id
            values["expires_at"] = None if seconds is None else tx.now + round(seconds * 1_000_000)
            insert = sa.insert(tokens).values(digest=digest, created_at=tx.now, **values).returning(*_TOKEN)
            return Token(**tx.conn.execute(insert).mappings().one())

        return await self._database.write(add)

    async def token(self, digest: str) -> tuple[Token, User] | None:
        """See `accounts.People`."""
        query = sa.select(*_TOKEN).where(tokens.c.digest == digest, tokens.c.active)

        def read(conn: sa.Connection, now: Any) -> tuple[Token, User] | None:
            row = conn.execute(query).mappings().one_or_none()
            if row is None or (row["expires_at"] is not None and row["expires_at"] <= now()):
                return None
            owner = sa.select(*_USER).where(users.c.id == row["user_id"], users.c.active)
            user = conn.execute(owner).mappings().one_or_none()
            return (Token(**row), User(**user)) if user else None

        return await self._database.read(read)

    async def end_token(self, digest: str) -> bool:
        """See `accounts.People`."""
        update = sa.update(tokens).where(tokens.c.digest == digest, tokens.c.active).values(active=False)
        return await self._database.write(lambda tx: change(tx, "people", update))
