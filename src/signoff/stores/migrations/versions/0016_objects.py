"""Add the parts of answers that upstreams store, marks of objects under review, and fingerprints of keys."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0014"


def upgrade() -> None:
    """Create the tables. Parts of earlier answers are not known."""
    op.create_table(
        "created_objects",
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("object_id"),
    )
    op.create_index("ix_created_objects_job_id", "created_objects", ["job_id"])
    op.create_table(
        "held_objects",
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("held_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("object_id"),
    )
    op.create_table(
        "encryption_keys",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint"),
    )
