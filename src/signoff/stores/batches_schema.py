"""The tables of files and batches."""

import sqlalchemy as sa

from signoff.core.access import Caller
from signoff.core.batch import UNENDED, BatchError, BatchTotals
from signoff.stores.json_column import JsonColumn
from signoff.stores.metadata import metadata, partial_index
from signoff.stores.schema import jobs

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    # Time at which the owner deleted it; its blob is deleted afterwards.
    sa.Column("deleted_at", sa.BigInteger),
)
sa.Index("files_in_order", files.c.user_id, files.c.id)
partial_index("files_deleted", files.c.deleted_at, where=files.c.deleted_at.is_not(None))
partial_index("files_expiring", files.c.expires_at, where=files.c.expires_at.is_not(None))
partial_index("files_uploading", files.c.created_at, where=files.c.size_bytes.is_(None))

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("api", sa.Text, nullable=False),
    sa.Column("caller", JsonColumn(Caller), nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("input_file_id", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("metadata", JsonColumn(dict[str, str])),
    sa.Column("output_seconds", sa.BigInteger),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("fingerprint", sa.Text),
    sa.Column("webhook", sa.LargeBinary),
    sa.Column("webhook_host", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("errors", JsonColumn(tuple[BatchError, ...]), nullable=False),
    sa.Column("total", sa.BigInteger),
    sa.Column("next_line", sa.BigInteger, nullable=False),
    sa.Column("next_byte", sa.BigInteger, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("totals", JsonColumn(BatchTotals)),
    sa.Column("output_file_id", sa.Text),
    sa.Column("error_file_id", sa.Text),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("in_progress_at", sa.BigInteger),
    sa.Column("finalizing_at", sa.BigInteger),
    sa.Column("completed_at", sa.BigInteger),
    sa.Column("failed_at", sa.BigInteger),
    sa.Column("expired_at", sa.BigInteger),
    sa.Column("cancelling_at", sa.BigInteger),
    sa.Column("cancelled_at", sa.BigInteger),
    sa.Column("due_at", sa.BigInteger, nullable=False),
    sa.Column("lease", sa.Text),
    sa.Column("lease_until", sa.BigInteger),
)
# A partial index serves literals only.
IS_UNENDED = batches.c.status.in_([sa.literal_column(f"'{status}'") for status in UNENDED])
sa.Index("batches_by_user", batches.c.user_id, batches.c.api, batches.c.id)
partial_index("batches_due", batches.c.due_at, where=IS_UNENDED)
partial_index("batches_by_input", batches.c.input_file_id, where=IS_UNENDED)
partial_index(
    "batches_by_key",
    batches.c.user_id,
    batches.c.idempotency_key,
    unique=True,
    where=batches.c.idempotency_key.is_not(None),
)

_LINE = jobs.c.batch_id.is_not(None)
partial_index("jobs_by_batch", jobs.c.batch_id, jobs.c.batch_line, unique=True, where=_LINE)
partial_index("jobs_by_batch_and_status", jobs.c.batch_id, jobs.c.status, where=_LINE)
