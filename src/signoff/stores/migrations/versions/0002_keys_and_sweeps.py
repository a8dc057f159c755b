"""Idempotency keys in a table of their own, so that a job that has ended never changes; faster sweeps."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Moves the keys, and puts the status first in the indexes that sweeps go by."""
    op.create_table(
        "used_keys",
        sa.Column("user_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "key"),
    )
    op.execute(
        "INSERT INTO used_keys (user_id, key, job_id)"
        " SELECT user_id, idempotency_key, id FROM jobs WHERE idempotency_key IS NOT NULL"
    )
    op.drop_index("jobs_by_key", "jobs")
    for name, time, condition in (
        ("jobs_leased", "lease_until", "lease IS NOT NULL"),
        ("jobs_decided", "release_at", "release_at IS NOT NULL"),
        ("jobs_limited", "review_deadline", "review_deadline IS NOT NULL"),
    ):
        where = sa.text(condition)
        op.drop_index(name, "jobs")
        op.create_index(name, "jobs", ["status", time], sqlite_where=where, postgresql_where=where)
