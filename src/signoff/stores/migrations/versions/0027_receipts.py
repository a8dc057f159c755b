"""Add the receipts of decisions, which cannot be changed, their keys and salts, figures of reviews, and erasures."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0025"

_SUMS = (
    *("decisions", "approved", "edited", "redone", "rejected"),
    *("verdict_us", "open_us", "vote_pairs", "agreed_pairs"),
)


def upgrade() -> None:
    """Create the tables, and the triggers that make receipts append-only."""
    op.create_table(
        "receipts",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("job_id", sa.Text),
        sa.Column("round", sa.Integer),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("line", sa.LargeBinary, nullable=False),
        sa.Column("archived_until", sa.Integer),
    )
    op.create_index("ix_receipts_at", "receipts", ["at"])
    op.create_index("ix_receipts_archived_until", "receipts", ["archived_until"])
    op.create_index("receipts_by_job", "receipts", ["job_id", "seq"])
    op.create_table(
        "receipt_keys",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "receipt_salts",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "review_hours",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("hour", sa.BigInteger, nullable=False),
        sa.Column("policy", sa.Text),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("reviewer", sa.Text, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
    )
    op.create_index("ix_review_hours_hour", "review_hours", ["hour"])
    op.create_table(
        "erasures",
        sa.Column("user_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("requested_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
    )
    op.bulk_insert(
        sa.table("versions", sa.column("topic", sa.Text), sa.column("version", sa.BigInteger)),
        [{"topic": "receipts", "version": 0}],
    )
    _create_triggers()


def _create_triggers() -> None:
    """Refuse updates of receipts, and deletions of those that no later receipt declares archived."""
    archived = "EXISTS (SELECT 1 FROM receipts WHERE archived_until >= OLD.seq)"
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER receipts_no_update BEFORE UPDATE ON receipts "
            "BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END"
        )
        op.execute(
            f"CREATE TRIGGER receipts_no_delete BEFORE DELETE ON receipts WHEN NOT {archived} "
            "BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION receipts_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF TG_OP = 'DELETE' AND {archived} THEN RETURN OLD; END IF; "
        "RAISE EXCEPTION 'receipts are append-only'; END $$"
    )
    for event, level in (("UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
        op.execute(
            f"CREATE TRIGGER receipts_no_{event.split()[0].lower()} BEFORE {event} ON receipts "
            f"FOR EACH {level} EXECUTE FUNCTION receipts_refuse_change()"
        )
