"""Add the groups of error budgets."""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    """Create the table of the groups, and name the group of each period."""
    op.create_table(
        "budget_groups",
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("group", sa.Text(), nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("policy", "group"),
    )
    op.add_column("budget_periods", sa.Column("group", sa.Text(), nullable=True))
