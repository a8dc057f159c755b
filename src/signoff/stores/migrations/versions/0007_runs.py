"""Add pipeline runs: jobs that are steps of another job, and calls of functions."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

COLUMNS = {
    "parent_id": sa.Text(),
    "parent_round": sa.Integer(),
    "node": sa.Text(),
    "pipeline_id": sa.Integer(),
    "pipeline_version": sa.Integer(),
    "parked_at": sa.BigInteger(),
}


def upgrade() -> None:
    """Add the columns, the table and the indexes."""
    for name, kind in COLUMNS.items():
        op.add_column("jobs", sa.Column(name, kind, nullable=True))
    for name, columns, condition in (
        ("jobs_by_place", ["parent_id", "parent_round", "node"], "parent_id IS NOT NULL"),
        ("jobs_parked", ["status", "parked_at"], "parked_at IS NOT NULL"),
    ):
        where = sa.text(condition)
        is_unique = name == "jobs_by_place"
        op.create_index(name, "jobs", columns, unique=is_unique, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "function_calls",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("arguments", sa.LargeBinary(), nullable=False),
        sa.Column("output", sa.LargeBinary(), nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.Column("began_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "round", "node"),
    )
