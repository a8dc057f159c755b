"""Order the jobs that wait by priority and user, so that workers can claim them in turns."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

IS_WAITING = "status = 'bot' AND lane = 'later' AND lease IS NULL AND parked_at IS NULL"


def upgrade() -> None:
    """Replace the index that claims read."""
    op.drop_index("jobs_to_claim", "jobs")
    op.create_index(
        "jobs_to_claim",
        "jobs",
        ["lane", "priority", "user_id", "due_at", "id", "model"],
        sqlite_where=sa.text(IS_WAITING),
        postgresql_where=sa.text(IS_WAITING),
    )
