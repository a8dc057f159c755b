"""Add the views that users save of pages, and counts of requests that limits have refused."""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0027"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "saved_views",
        sa.Column("user_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("page", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("query", sa.Text, nullable=False),
    )
    op.create_table(
        "refusal_hours",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("hour", sa.BigInteger, nullable=False),
        sa.Column("limit_name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("token_id", sa.Integer, nullable=False),
        sa.Column("refused", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_refusal_hours_hour", "refusal_hours", ["hour"])
