"""Add the response cache, and its outcome for each job."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table and add the columns."""
    op.create_table(
        "cached",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("usage", sa.LargeBinary(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("cached_by_age", "cached", ["created_at", "size_bytes"])
    op.add_column("jobs", sa.Column("cache", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("cache_key", sa.Text(), nullable=True))
    op.add_column("tokens", sa.Column("cache", sa.Text(), nullable=True))
    versions = sa.table("versions", sa.column("topic"), sa.column("version"))
    op.bulk_insert(versions, [{"topic": "cache", "version": 0}])
