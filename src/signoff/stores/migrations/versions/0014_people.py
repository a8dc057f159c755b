"""Record the last use of tokens and the failed sign-ins, and index the tokens that are active."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add a column and an index to the tokens, and a table."""
    op.add_column("tokens", sa.Column("last_used_at", sa.BigInteger))
    op.create_index(
        "tokens_active",
        "tokens",
        ["kind", "id"],
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
    op.create_table(
        "sign_in_failures",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("blocked_until", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_sign_in_failures_expires_at", "sign_in_failures", ["expires_at"])
