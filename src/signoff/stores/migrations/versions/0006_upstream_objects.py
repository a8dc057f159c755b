"""Add the id of the object that an answer left at its upstream."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column and its index."""
    op.add_column("jobs", sa.Column("made", sa.Text(), nullable=True))
    where = sa.text("made IS NOT NULL")
    op.create_index("jobs_by_made", "jobs", ["made", "id"], sqlite_where=where, postgresql_where=where)
