"""Add files and batches, and the place of a job in its batch."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0029"


def upgrade() -> None:
    """Create the tables, and the columns and indexes of jobs."""
    op.create_table(
        "files",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("deleted_at", sa.BigInteger),
    )
    op.create_index("files_by_user", "files", ["user_id", "created_at", "id"])
    _partial_index("files_deleted", "files", ["deleted_at"], "deleted_at IS NOT NULL")
    _partial_index("files_expiring", "files", ["expires_at"], "expires_at IS NOT NULL")
    _partial_index("files_uploading", "files", ["created_at"], "size_bytes IS NULL")
    op.create_table("batches", *_batch_columns())
    op.create_index("batches_by_user", "batches", ["user_id", "api", "id"])
    unended = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
    _partial_index("batches_due", "batches", ["due_at"], unended)
    _partial_index("batches_by_input", "batches", ["input_file_id"], unended)
    has_key = "idempotency_key IS NOT NULL"
    _partial_index("batches_by_key", "batches", ["user_id", "idempotency_key"], has_key, unique=True)
    op.add_column("jobs", sa.Column("batch_id", sa.Text))
    op.add_column("jobs", sa.Column("batch_line", sa.Integer))
    _partial_index("jobs_by_batch", "jobs", ["batch_id", "batch_line"], "batch_id IS NOT NULL", unique=True)
    _partial_index("jobs_by_batch_and_status", "jobs", ["batch_id", "status"], "batch_id IS NOT NULL")


def _partial_index(name: str, table: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


def _batch_columns() -> list[sa.Column[Any]]:
    times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return [
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("api", sa.Text, nullable=False),
        sa.Column("caller", sa.LargeBinary, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("input_file_id", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("metadata", sa.LargeBinary),
        sa.Column("output_seconds", sa.BigInteger),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("fingerprint", sa.Text),
        sa.Column("webhook", sa.LargeBinary),
        sa.Column("webhook_host", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("errors", sa.LargeBinary, nullable=False),
        sa.Column("total", sa.BigInteger),
        sa.Column("next_line", sa.BigInteger, nullable=False),
        sa.Column("next_byte", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("totals", sa.LargeBinary),
        sa.Column("output_file_id", sa.Text),
        sa.Column("error_file_id", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        *(sa.Column(f"{time}_at", sa.BigInteger) for time in times),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("lease", sa.Text),
        sa.Column("lease_until", sa.BigInteger),
    ]
