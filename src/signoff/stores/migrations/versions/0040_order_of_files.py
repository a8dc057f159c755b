"""Order the files of a user by their ids, and give up the inputs of message batches that have ended."""

import sqlalchemy as sa
from alembic import op

from signoff.stores.clock import now_us

revision = "0040"
down_revision = "0039"

DAY_US = 86_400_000_000


def upgrade() -> None:
    """Replace the index, and mark inputs that nothing reads as deleted, so that their contents are deleted.

    An input is stored a little before its batch, so one of the last day stays.
    """
    op.create_index("files_in_order", "files", ["user_id", "id"])
    op.drop_index("files_by_user", "files")
    files = sa.table("files", *map(sa.column, ("id", "purpose", "created_at", "deleted_at")))
    batches = sa.table("batches", *map(sa.column, ("input_file_id", "status")))
    is_needed = sa.exists().where(
        batches.c.input_file_id == files.c.id,
        batches.c.status.in_(["validating", "in_progress", "finalizing", "cancelling"]),
    )
    is_given_up = (
        files.c.purpose == "message_batch",
        files.c.deleted_at.is_(None),
        files.c.created_at < now_us() - DAY_US,
        ~is_needed,
    )
    op.execute(sa.update(files).where(*is_given_up).values(deleted_at=now_us()))
