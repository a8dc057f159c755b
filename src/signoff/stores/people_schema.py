"""The tables of users, of their tokens, and of failed sign-ins. Times are microseconds since 1970, UTC."""

import sqlalchemy as sa

from signoff.stores.metadata import metadata, partial_index

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("email", sa.Text, nullable=False, unique=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("password_hash", sa.Text),
    sa.Column("active", sa.Boolean, nullable=False),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("user_id", sa.Integer, sa.ForeignKey(users.c.id), nullable=False, index=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("cache", sa.Text),
    sa.Column("key_id", sa.Integer),
    sa.Column("last_used_at", sa.BigInteger),
)
# The tokens that lists show; ended ones stay in the table, because jobs refer to them.
partial_index("tokens_active", tokens.c.kind, tokens.c.id, where=tokens.c.active)

# Accounts at OpenID Connect providers, each bound to one user; a user has one account of each issuer.
provider_accounts = sa.Table(
    "provider_accounts",
    metadata,
    sa.Column("issuer", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Integer, sa.ForeignKey(users.c.id), nullable=False),
    sa.Column("bound_at", sa.BigInteger, nullable=False),
)
sa.Index("provider_accounts_of_user", provider_accounts.c.user_id, provider_accounts.c.issuer, unique=True)

# Addresses of pages that users have named, such as the list of jobs with certain filters.
saved_views = sa.Table(
    "saved_views",
    metadata,
    sa.Column("user_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("page", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("query", sa.Text, nullable=False),
)

# A row for each e-mail address and each client with failed sign-ins; see `core.sign_in`.
sign_in_failures = sa.Table(
    "sign_in_failures",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("blocked_until", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)
