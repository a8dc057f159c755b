"""Users and their tokens, in SQL."""

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

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
    accounts_unbound,
    change_of,
    sessions_ended,
    token_created,
    token_revoked,
)
from signoff.core.cache import CacheRule
from signoff.core.oidc import ProviderAccount, ProviderSettings, role_at_sign_in, sign_in_kind
from signoff.errors import Conflict, TokenExpired
from signoff.infra.actor import current_actor
from signoff.stores.audit import record
from signoff.stores.database import Database
from signoff.stores.people_schema import provider_accounts, tokens, users
from signoff.stores.provider_accounts import bind_account, has_account, user_of_account
from signoff.stores.review_rights import end_reviews
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump, change, lock

LAST_ADMIN = "{email} is the last active admin; make another user an admin first."
_USER = tuple(users.c)
_TOKEN = tuple(tokens.c)
_OF_SIGN_IN = tokens.c.kind.in_(["signin", "session"])
# As the partial index has it: SQLAlchemy would compare with 1 on SQLite, and SQLite would not use the index.
_IN_INDEX = sa.text("tokens.active")


class SqlPeople:
    """Users and tokens in a SQL database; see `accounts.People`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def user(self, email: str) -> User | None:
        """See `accounts.People`."""
        query = sa.select(*_USER).where(users.c.email == email.lower())
        row = await self._database.read(lambda conn, _: conn.execute(query).mappings().one_or_none())
        return User(**row) if row else None

    async def users(self, *, after_id: int = 0, limit: int | None = None) -> list[User]:
        """See `accounts.People`."""
        query = sa.select(*_USER).where(users.c.id > after_id).order_by(users.c.id).limit(limit)
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [User(**row) for row in rows]

    async def user_by_id(self, user_id: int) -> User | None:
        """See `accounts.People`."""
        return (await self.user_with_token(user_id, 0))[0]

    async def user_with_token(self, user_id: int, token_id: int) -> tuple[User | None, Token | None]:
        """See `accounts.People`."""
        user_query = sa.select(*_USER).where(users.c.id == user_id)
        token_query = sa.select(*_TOKEN).where(tokens.c.id == token_id, tokens.c.user_id == user_id)

        def read(conn: sa.Connection, _: Any) -> tuple[User | None, Token | None]:
            user = conn.execute(user_query).mappings().one_or_none()
            token = conn.execute(token_query).mappings().one_or_none()
            return (User(**user) if user else None), (Token(**token) if token else None)

        return await self._database.read(read)

    async def has_other_reviewer(self, user_id: int) -> bool:
        """See `accounts.People`."""
        may_review = users.c.role.in_(["admin", "reviewer"]) & users.c.active
        query = sa.select(users.c.id).where(may_review, users.c.id != user_id).limit(1)
        return await self._database.read(lambda conn, _: conn.execute(query).first() is not None)

    async def put_user(
        self, email: str, role: Role, password_hash: str | None = None, *, must_be_new: bool = False
    ) -> User:
        """See `accounts.People`."""
        actor = current_actor()

        def put(tx: Tx) -> User:
            lock(tx, "people")
            query = sa.select(*_USER).where(users.c.email == email.lower())
            row = tx.conn.execute(query).mappings().one_or_none()
            if row is not None and must_be_new:
                raise email_taken(email)
            if row is not None:
                return _change(tx, actor, User(**row), UserValues(role=role, password_hash=password_hash))
            user = _create(tx, email, role, password_hash)
            record(tx, actor, change_of("user", user.email, None, user))
            return user

        try:
            return await self._database.write(put)
        except IntegrityError:  # another process inserted the user at the same time: now there is a row to update
            return await self._database.write(put)

    async def change_user(
        self,
        user_id: int,
        *,
        role: Role | None = None,
        active: bool | None = None,
        password_hash: str | None = None,
    ) -> User | None:
        """See `accounts.People`."""
        actor, values = current_actor(), UserValues(role=role, active=active, password_hash=password_hash)

        def apply(tx: Tx) -> User | None:
            lock(tx, "people")
            row = tx.conn.execute(sa.select(*_USER).where(users.c.id == user_id)).mappings().one_or_none()
            return None if row is None else _change(tx, actor, User(**row), values)

        return await self._database.write(apply)

    async def user_of_account(self, issuer: str, subject: str) -> User | None:
        """See `accounts.People`."""
        return await self._database.read(lambda conn, _: user_of_account(conn, issuer, subject))

    async def sign_in(self, account: ProviderAccount, settings: ProviderSettings) -> User:
        """See `accounts.People`."""
        actor = current_actor()

        def sign_in(tx: Tx) -> User:
            lock(tx, "people")
            return _admit(tx, actor, account, settings)

        try:
            return await self._database.write(sign_in)
        except IntegrityError:  # another process inserted the user, or bound the account, at the same time
            return await self._database.write(sign_in)

    async def bind_account(self, user_id: int, issuer: str, subject: str) -> None:
        """See `accounts.People`."""
        actor = current_actor()

        def bind(tx: Tx) -> None:
            lock(tx, "people")
            user = User(**tx.conn.execute(sa.select(*_USER).where(users.c.id == user_id)).mappings().one())
            if (other := user_of_account(tx.conn, issuer, subject)) is not None:
                raise Conflict(f"The account is bound to {other.email} already; unbind it first.")
            if has_account(tx.conn, user_id, issuer):
                raise Conflict(f"{user.email} is bound to another account already; unbind it first.")
            bind_account(tx, actor, user, ProviderAccount(issuer=issuer, subject=subject))

        await self._database.write(bind)

    async def unbind_accounts(self, user_id: int) -> int:
        """See `accounts.People`."""
        actor, of_user = current_actor(), provider_accounts.c.user_id == user_id

        def unbind(tx: Tx) -> int:
            lock(tx, "people")
            query = sa.select(provider_accounts.c.issuer, provider_accounts.c.subject).where(of_user)
            accounts = [(row.issuer, row.subject) for row in tx.conn.execute(query).all()]
            if accounts:
                tx.conn.execute(sa.delete(provider_accounts).where(of_user))
                _end_sessions(tx, user_id)
                email = tx.conn.execute(sa.select(users.c.email).where(users.c.id == user_id)).scalar_one()
                record(tx, actor, accounts_unbound(email, accounts))
                bump(tx, "people")
            return len(accounts)

        return await self._database.write(unbind)

    async def replace_password_hash(self, user_id: int, old: str, new: str) -> None:
        """See `accounts.People`."""
        is_unchanged = (users.c.id == user_id, users.c.password_hash == old)
        update = sa.update(users).where(*is_unchanged).values(password_hash=new)
        await self._database.write(lambda tx: change(tx, "people", update))

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
        password_hash: str | None = None,
    ) -> Token:
        """See `accounts.People`."""
        actor = current_actor()

        def add(tx: Tx) -> Token:
            bump(tx, "people")  # before the user is read: it waits for a change of the user to commit
            if kind == "session":
                _check_unchanged(tx, user_id, password_hash)
            if kind == "api":
                check_token_count(_living_tokens(tx, user_id) + 1)
            _end_sessions(tx, user_id, tokens.c.kind == "signin" if kind == "signin" else tokens.c.expires_at <= tx.now)
            values: dict[str, Any] = {"user_id": user_id, "kind": kind, "name": name, "role": role, "active": True}
            values |= {"cache": cache, "key_id": key_id}
            values["expires_at"] = None if seconds is None else tx.now + round(seconds * 1_000_000)
            insert = sa.insert(tokens).values(digest=digest, created_at=tx.now, **values).returning(*_TOKEN)
            token = Token(**tx.conn.execute(insert).mappings().one())
            if kind != "session":  # signing in changes no configuration
                record(tx, actor, token_created(token))
            return token

        return await self._database.write(add)

    async def token(self, digest: str) -> tuple[Token, User] | None:
        """See `accounts.People`."""
        query = sa.select(*_TOKEN).where(tokens.c.digest == digest, tokens.c.active)

        def read(conn: sa.Connection, now: Any) -> tuple[Token, User] | None:
            row = conn.execute(query).mappings().one_or_none()
            if row is None:
                return None
            owner = sa.select(*_USER).where(users.c.id == row["user_id"], users.c.active)
            user = conn.execute(owner).mappings().one_or_none()
            if user is not None and row["expires_at"] is not None and row["expires_at"] <= now():
                raise TokenExpired
            return (Token(**row), User(**user)) if user else None

        return await self._database.read(read)

    async def tokens(
        self, kind: TokenKind, user_id: int | None, *, after_id: int = 0, limit: int = 50
    ) -> list[tuple[Token, User]]:
        """See `accounts.People`."""
        query = page_of_tokens(kind, user_id, after_id).limit(limit)

        def read(conn: sa.Connection, now: Any) -> list[Any]:
            page = query if kind == "api" else query.where(tokens.c.expires_at > now())
            return [*conn.execute(page).mappings()]

        return [(_of_row(Token, "token_", row), _of_row(User, "user_", row)) for row in await self._database.read(read)]

    async def end_token(self, digest: str) -> bool:
        """See `accounts.People`."""
        update = sa.update(tokens).where(tokens.c.digest == digest, tokens.c.active).values(active=False)
        return await self._database.write(lambda tx: change(tx, "people", update))

    async def revoke_token(self, kind: TokenKind, token_id: int, user_id: int | None) -> bool:
        """See `accounts.People`."""
        update = sa.update(tokens).where(tokens.c.id == token_id, tokens.c.kind == kind, tokens.c.active)
        if user_id is not None:
            update = update.where(tokens.c.user_id == user_id)
        actor, update = current_actor(), update.values(active=False)

        def revoke(tx: Tx) -> bool:
            lock(tx, "people")
            row = tx.conn.execute(update.returning(*_TOKEN)).mappings().one_or_none()
            if row is None:
                return False
            record(tx, actor, token_revoked(Token(**row)))
            bump(tx, "people")
            return True

        return await self._database.write(revoke)

    async def end_sessions(self, user_id: int) -> int:
        """See `accounts.People`."""
        actor = current_actor()

        def end(tx: Tx) -> int:
            bump(tx, "people")
            if count := _end_sessions(tx, user_id):
                email = tx.conn.execute(sa.select(users.c.email).where(users.c.id == user_id)).scalar_one()
                record(tx, actor, sessions_ended(email, count))
            return count

        return await self._database.write(end)

    async def mark_used(self, times: Mapping[int, int]) -> None:
        """See `accounts.People`."""

        def mark(tx: Tx) -> None:
            for token_id in sorted(times):  # in one order, so that processes do not block each other
                is_later = tokens.c.last_used_at.is_(None) | (tokens.c.last_used_at < times[token_id])
                update = sa.update(tokens).where(tokens.c.id == token_id, is_later)
                tx.conn.execute(update.values(last_used_at=times[token_id]))

        await self._database.write(mark)


def page_of_tokens(kind: TokenKind, user_id: int | None, after_id: int) -> sa.Select[Any]:
    """Return the query of active tokens and their users, in the order of their ids."""
    columns = [column.label(f"user_{column.name}") for column in _USER]
    query = sa.select(*(column.label(f"token_{column.name}") for column in _TOKEN), *columns)
    query = query.join(users, users.c.id == tokens.c.user_id).order_by(tokens.c.id)
    query = query.where(tokens.c.kind == kind, _IN_INDEX, tokens.c.id > after_id)
    return query if user_id is None else query.where(tokens.c.user_id == user_id)


def _of_row(kind: type[Any], prefix: str, row: Mapping[str, Any]) -> Any:
    return kind(**{name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)})


class UserValues(msgspec.Struct, frozen=True, kw_only=True):
    """New values of a user; None keeps the present one."""

    role: Role | None = None
    """Role of the user."""
    active: bool | None = None
    """False to disable the user."""
    password_hash: str | None = None
    """Hash of the password."""


def _create(tx: Tx, email: str, role: Role, password_hash: str | None) -> User:
    values = {"email": email.lower(), "role": role, "password_hash": password_hash, "active": True}
    user = User(**tx.conn.execute(sa.insert(users).values(values).returning(*_USER)).mappings().one())
    bump(tx, "people")
    return user


def _admit(tx: Tx, actor: Actor, account: ProviderAccount, settings: ProviderSettings) -> User:
    """Return the user of an account that signs in; see `accounts.People.sign_in`."""
    bound, email = user_of_account(tx.conn, account.issuer, account.subject), account.email
    query = sa.select(*_USER).where(users.c.email == email)
    row = None if email is None else tx.conn.execute(query).mappings().one_or_none()
    namesake = User(**row) if row else None
    is_taken = namesake is not None and has_account(tx.conn, namesake.id, account.issuer)
    kind = sign_in_kind(account, settings, bound=bound, namesake=namesake, is_taken=is_taken)
    user = bound or namesake
    if kind == "create" or user is None:
        # `sign_in_kind` creates no user without an address and a role.
        user = _create(tx, email or "", account.role or "user", None)
        bind_account(tx, actor, user, account, is_new=True)
        return user
    role = role_at_sign_in(user, account, settings)
    if role != user.role:  # first, as it may raise an error, after which nothing may be changed
        user = _change(tx, actor, user, UserValues(role=role))
    if kind == "link":
        bind_account(tx, actor, user, account)
    return user


def _change(tx: Tx, actor: Actor, user: User, new: UserValues) -> User:
    """Change what is not None, and end the sessions and reviews that the user may not go on with. Raises Conflict."""
    role, active, password_hash = new.role or user.role, new.active, new.password_hash
    active = user.active if active is None else active
    _check_admin_is_left(tx, user, is_admin=active and role == "admin")
    values = {"role": role, "active": active, "password_hash": password_hash or user.password_hash}
    update = sa.update(users).where(users.c.id == user.id).values(values).returning(*_USER)
    changed = User(**tx.conn.execute(update).mappings().one())
    has_new_password = password_hash is not None and password_hash != user.password_hash
    if has_new_password or has_fewer_rights(role, user.role) or not active:
        _end_sessions(tx, user.id)
    if may_review(user) and not may_review(changed):
        end_reviews(tx, user.email, actor.name)
    record(tx, actor, change_of("user", user.email, user, changed))
    bump(tx, "people")
    return changed


def _check_admin_is_left(tx: Tx, user: User, *, is_admin: bool) -> None:
    """Raise Conflict if `user` is the last active admin and will not be one."""
    if is_admin or not user.active or user.role != "admin":
        return
    others = sa.select(users.c.id).where(users.c.role == "admin", users.c.active, users.c.id != user.id).limit(1)
    if tx.conn.execute(others).one_or_none() is None:
        raise Conflict(LAST_ADMIN.format(email=user.email))


def _check_unchanged(tx: Tx, user_id: int, password_hash: str | None) -> None:
    """Raise Conflict unless the user is active, and has this password."""
    is_same = (users.c.id == user_id, users.c.active, users.c.password_hash.is_not_distinct_from(password_hash))
    if tx.conn.execute(sa.select(users.c.id).where(*is_same)).first() is None:
        raise Conflict("The user was disabled, or got a new password, meanwhile; sign in again.")


def _living_tokens(tx: Tx, user_id: int) -> int:
    """Return the number of API tokens of a user that are neither revoked nor expired."""
    is_alive = (tokens.c.active, tokens.c.expires_at.is_(None) | (tokens.c.expires_at > tx.now))
    query = sa.select(sa.func.count()).where(tokens.c.user_id == user_id, tokens.c.kind == "api", *is_alive)
    return tx.conn.execute(query).scalar_one()


def _end_sessions(tx: Tx, user_id: int, *conditions: sa.ColumnElement[bool]) -> int:
    """Deactivate sessions and sign-in links of a user, those that meet the conditions; return their number."""
    update = sa.update(tokens).where(tokens.c.user_id == user_id, _OF_SIGN_IN, tokens.c.active, *conditions)
    return tx.conn.execute(update.values(active=False)).rowcount
