"""Add the ruling of a job's policy, and the place of a held job on the desk."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("jobs", sa.Column("ruling", sa.LargeBinary(), nullable=True))
    op.add_column("jobs", sa.Column("review_queue", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("review_priority", sa.SmallInteger(), nullable=True))
    op.add_column("jobs", sa.Column("assignee", sa.Text(), nullable=True))
