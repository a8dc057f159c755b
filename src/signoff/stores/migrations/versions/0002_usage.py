"""Add tokens, cost and times of jobs, prices, and the usage of deleted jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
_TIMES = ("queued_us", "first_us", "answer_us")
_SUMS = ("jobs", "unpriced", "timed", *_TOKENS, "cost_nanodollars", *_TIMES)


def upgrade() -> None:
    """Add the columns and the tables."""
    for name in _TOKENS:
        op.add_column("jobs", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    for name in ("cost_nanodollars", *_TIMES):
        op.add_column("jobs", sa.Column(name, sa.BigInteger(), nullable=True))
    op.create_table(
        "prices",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("input", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column("cached_input", sa.BigInteger(), nullable=True),
        sa.Column("request", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model", "valid_from"),
    )
    op.create_table(
        "past_usage",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("target", "model", "door", "status")),
        sa.Column("cache", sa.Text(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=True),
        sa.Column("prompt_version", sa.Integer(), nullable=True),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS),
    )
    op.create_index(op.f("ix_past_usage_hour"), "past_usage", ["hour"])
    op.bulk_insert(
        sa.table("versions", sa.column("topic", sa.Text), sa.column("version", sa.BigInteger)),
        [{"topic": "prices", "version": 0}],
    )
