"""Add departures: jobs whose waiting caller left before the answer came."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Create the table, with an index for callers who return."""
    op.create_table(
        "departures",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("left_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("ix_departures_left_at", "departures", ["left_at"])
    op.create_index("departures_by_request", "departures", ["user_id", "token_id", "fingerprint", "job_id"])
