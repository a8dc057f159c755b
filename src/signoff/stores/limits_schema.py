"""The table of refusals: a row for each hour, limit, kind, user and token, which the refusing transaction adds to."""

import sqlalchemy as sa

from signoff.stores.metadata import metadata

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
