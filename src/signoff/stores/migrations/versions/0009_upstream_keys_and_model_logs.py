"""Add upstream keys of users for jobs and tokens, and the logs of models."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the columns, the indexes and the table."""
    op.add_column("jobs", sa.Column("key_id", sa.Integer(), nullable=True))
    op.add_column("tokens", sa.Column("key_id", sa.Integer(), nullable=True))
    op.add_column("keys", sa.Column("is_shared", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("keys_by_user", "keys", ["user_id", "id"])
    op.create_table(
        "model_logs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("model_logs_by_model", "model_logs", ["model", "id"])
