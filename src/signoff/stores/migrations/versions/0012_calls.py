"""Add the table of calls that have ended, and let the cache refer to the rows that have the answers.

Rows of such calls that are in `jobs` already stay there, where all queries read them too.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Create the table with its indexes, and drop the columns of the cache that repeat a job."""
    op.create_table(
        "calls",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("upstream_object_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("calls_by_status", "calls", ["status", "id"])
    op.create_index("calls_by_user_and_status", "calls", ["user_id", "status", "id"])
    op.create_index("calls_by_age", "calls", ["created_at"])
    has_object = sa.text("upstream_object_id IS NOT NULL")
    op.create_index(
        "calls_by_upstream_object",
        "calls",
        ["upstream_object_id", "id"],
        sqlite_where=has_object,
        postgresql_where=has_object,
    )
    for column in ("answer", "usage", "path"):
        op.drop_column("cached", column)
