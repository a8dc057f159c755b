"""Let each door have its own job under the id that a caller chose."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Add the door to the index that makes these ids unique."""
    op.drop_index("jobs_by_client_id", "jobs")
    where = sa.text("client_id IS NOT NULL")
    op.create_index(
        "jobs_by_client_id",
        "jobs",
        ["user_id", "client_id", "door"],
        unique=True,
        sqlite_where=where,
        postgresql_where=where,
    )
