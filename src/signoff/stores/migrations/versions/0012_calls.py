"""Add the table of calls that have ended, let the cache refer to the rows that have the answers, and sum usage by day.

Rows of such calls that are in `jobs` already stay there, where all queries read them too.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

DAY_US = 24 * 3600 * 1_000_000
DIMENSIONS = ("user_id", "token_id", "target", "model", "door", "status", "cache", "prompt", "prompt_version")
TOTALS = (
    "jobs",
    "unpriced",
    "timed",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost_nanodollars",
    "queued_us",
    "ttft_us",
    "generation_us",
)


def upgrade() -> None:
    """Create the tables with their indexes, fill the sums, and drop the columns of the cache that repeat a job."""
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
    op.create_table(
        "usage_days",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("day", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("target", "model", "door", "status")),
        sa.Column("cache", sa.Text(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=True),
        sa.Column("prompt_version", sa.Integer(), nullable=True),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in TOTALS),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_usage_days_day", "usage_days", ["day"])
    dimensions = ", ".join(DIMENSIONS)
    sums = ", ".join(f"CAST(sum({name}) AS BIGINT)" for name in TOTALS)
    op.execute(  # every name is a constant of this file
        f"INSERT INTO usage_days (key, day, {dimensions}, {', '.join(TOTALS)}) "  # noqa: S608
        f"SELECT 'hours:' || min(key), hour / {DAY_US} * {DAY_US}, {dimensions}, {sums} "
        f"FROM usage_hours GROUP BY hour / {DAY_US}, {dimensions}"
    )
