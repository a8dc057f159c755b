"""Add views that users save of pages, counts of what limits have refused, and figures of reviews by prompt."""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    """Create the tables, and add columns to the figures of reviews; an older server leaves them empty."""
    op.add_column("review_hours", sa.Column("prompt", sa.Text, nullable=True))
    op.add_column("review_hours", sa.Column("prompt_version", sa.Integer, nullable=True))
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
