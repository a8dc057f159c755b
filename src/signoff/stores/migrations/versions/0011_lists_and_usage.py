"""Add indexes for lists of jobs, and sums of the usage of ended jobs by hour."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

HOUR_US = 3600 * 1_000_000
DIMENSIONS = ("user_id", "token_id", "target", "model", "door", "status", "cache", "prompt", "prompt_version")
SUMMED = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost_nanodollars",
    "queued_us",
    "ttft_us",
    "generation_us",
)
TOTALS = ("jobs", "unpriced", "timed", *SUMMED)


def upgrade() -> None:
    """Replace the indexes, and move the sums of deleted jobs to a table that has those of all ended jobs."""
    op.drop_index("jobs_by_user", "jobs")
    op.drop_index("jobs_by_status", "jobs")
    op.create_index("jobs_by_user", "jobs", ["user_id", "id", "parent_id"])
    op.create_index("jobs_by_status", "jobs", ["status", "id", "parent_id"])
    op.create_index("jobs_by_user_and_status", "jobs", ["user_id", "status", "id", "parent_id"])
    op.create_table(
        "usage_hours",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("target", "model", "door", "status")),
        sa.Column("cache", sa.Text(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=True),
        sa.Column("prompt_version", sa.Integer(), nullable=True),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in TOTALS),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_usage_hours_hour", "usage_hours", ["hour"])
    dimensions, totals = ", ".join(DIMENSIONS), ", ".join(TOTALS)
    sums = ", ".join(f"CAST(coalesce(sum({name}), 0) AS BIGINT)" for name in SUMMED)
    columns = f"key, hour, {dimensions}, {totals}"
    has_tokens = "prompt_tokens + completion_tokens > 0"
    op.execute(  # every name is a constant of this file
        f"INSERT INTO usage_hours ({columns}) "  # noqa: S608
        f"SELECT 'ended:' || min(id), created_at / {HOUR_US} * {HOUR_US}, {dimensions}, count(*), "
        f"CAST(sum(CASE WHEN cost_nanodollars IS NULL AND {has_tokens} THEN 1 ELSE 0 END) AS BIGINT), "
        f"CAST(sum(CASE WHEN generation_us IS NULL THEN 0 ELSE 1 END) AS BIGINT), {sums} "
        f"FROM jobs WHERE status IN ('fail', 'success') GROUP BY created_at / {HOUR_US}, {dimensions}"
    )
    op.execute(
        f"INSERT INTO usage_hours ({columns}) SELECT 'past:' || id, hour, {dimensions}, {totals} FROM past_usage"  # noqa: S608
    )
    op.drop_table("past_usage")
