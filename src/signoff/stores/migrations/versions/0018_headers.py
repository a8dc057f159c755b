"""Add the headers of a caller that pass on to the model."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add the column."""
    op.add_column("jobs", sa.Column("headers", sa.LargeBinary(), nullable=True))
