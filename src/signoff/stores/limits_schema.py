"""The tables of limits, of what is used of them, and of what they refused, for both SQLite and PostgreSQL."""

import sqlalchemy as sa

from signoff.core.counters import Counter
from signoff.core.limits import Limit
from signoff.stores.json_column import JsonColumn
from signoff.stores.metadata import metadata

limits = sa.Table(
    "limits",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("limit", JsonColumn(Limit), nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)

counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("counter", JsonColumn(Counter), nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)

# A row for each hour, limit, kind, user and token, which the refusing transaction adds to.
refusal_hours = sa.Table(
    "refusal_hours",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("hour", sa.BigInteger, nullable=False, index=True),
    sa.Column("limit_name", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("token_id", sa.Integer, nullable=False),
    sa.Column("refused", sa.BigInteger, nullable=False, info={"sum": True}),
)
