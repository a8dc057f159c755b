"""Add error budgets, their audits, planted items, and jobs that are copies for reviewers."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    """Create the tables, and add a column to the jobs."""
    op.add_column("jobs", sa.Column("copy_of", sa.Text(), nullable=True))
    # The last columns let a count of jobs that are neither steps nor copies read an index alone.
    for name, columns in {"jobs_by_user": ["user_id"], "jobs_by_user_and_status": ["user_id", "status"]}.items():
        op.drop_index(name, "jobs")
        op.create_index(name, "jobs", [*columns, "id", "parent_id", "copy_of"])
    _create_budgets()
    _create_planted()


def _create_budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("policy"),
    )
    op.create_table(
        "budget_periods",
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("terms", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("catch_rate", sa.Float(), nullable=True),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("delivered", "audits", "audits_open", "wrong", "started_at")
        ),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("policy", "number"),
    )
    op.create_table(
        "budget_leases",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("granted", sa.Integer(), nullable=False),
        sa.Column("used", sa.Integer(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("budget_leases_by_period", "budget_leases", ["policy", "period"])
    op.create_table(
        "budget_audits",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("coin", sa.Float(), nullable=False),
        sa.Column("rate", sa.Float(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("is_wrong", sa.Boolean(), nullable=True),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "round", "attempt"),
    )


def _create_planted() -> None:
    op.create_table(
        "planted_items",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("presented_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("planted_items_by_policy", "planted_items", ["policy", "presented_at", "id"])
    op.create_table(
        "planted_jobs",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_table(
        "catch_counts",
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("reviewer", sa.Text(), nullable=False),
        sa.Column("judged", sa.BigInteger(), nullable=False),
        sa.Column("caught", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("policy", "reviewer"),
    )
