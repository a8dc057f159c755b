"""Rename columns and the table of counters to the terms of the field."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

JOBS = {"made": "upstream_object_id", "own_id": "client_id", "first_us": "ttft_us", "answer_us": "generation_us"}


def upgrade() -> None:
    """Rename the columns, the indexes on them, and `meters` to `counters`."""
    op.drop_index("jobs_by_made", "jobs")
    op.drop_index("jobs_by_own_id", "jobs")
    for old, new in JOBS.items():
        op.execute(f"ALTER TABLE jobs RENAME COLUMN {old} TO {new}")
    for old in ("first_us", "answer_us"):
        op.execute(f"ALTER TABLE past_usage RENAME COLUMN {old} TO {JOBS[old]}")
    has_object, has_client_id = sa.text("upstream_object_id IS NOT NULL"), sa.text("client_id IS NOT NULL")
    op.create_index(
        "jobs_by_upstream_object",
        "jobs",
        ["upstream_object_id", "id"],
        sqlite_where=has_object,
        postgresql_where=has_object,
    )
    op.create_index(
        "jobs_by_client_id",
        "jobs",
        ["user_id", "client_id"],
        unique=True,
        sqlite_where=has_client_id,
        postgresql_where=has_client_id,
    )
    op.rename_table("meters", "counters")
    op.execute("ALTER TABLE counters RENAME COLUMN meter TO counter")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER INDEX meters_pkey RENAME TO counters_pkey")
