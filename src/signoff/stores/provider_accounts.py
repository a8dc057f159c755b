"""Accounts at an OpenID Connect provider that are bound to users, in SQL."""

import sqlalchemy as sa

from signoff.core.access import User
from signoff.core.audit import Actor, account_bound
from signoff.core.oidc import ProviderAccount
from signoff.stores.audit import record
from signoff.stores.people_schema import provider_accounts, users
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump


def bind_account(tx: Tx, actor: Actor, user: User, account: ProviderAccount, *, is_new: bool = False) -> None:
    """Bind an account to a user, with an entry of the audit log."""
    values = {"issuer": account.issuer, "subject": account.subject, "user_id": user.id, "bound_at": tx.now}
    tx.conn.execute(sa.insert(provider_accounts).values(values))
    record(tx, actor, account_bound(user.email, account.issuer, account.subject, user if is_new else None))
    bump(tx, "people")


def user_of_account(conn: sa.Connection, issuer: str, subject: str) -> User | None:
    """Return the user to whom an account is bound."""
    of_account = (provider_accounts.c.issuer == issuer, provider_accounts.c.subject == subject)
    query = sa.select(*users.c).join(provider_accounts, provider_accounts.c.user_id == users.c.id).where(*of_account)
    row = conn.execute(query).mappings().one_or_none()
    return User(**row) if row else None


def has_account(conn: sa.Connection, user_id: int, issuer: str) -> bool:
    """Return True if the user has an account at this issuer."""
    of_user = (provider_accounts.c.user_id == user_id, provider_accounts.c.issuer == issuer)
    return conn.execute(sa.select(provider_accounts.c.subject).where(*of_user)).first() is not None
