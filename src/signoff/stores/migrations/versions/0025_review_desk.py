"""Add what reviewers work with: review queues, blind votes, bulk decisions, digests, and the order of held answers."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0023"

_WAITS = "status = 'human' AND release_at IS NULL"
_QUEUE = "coalesce(review_queue, '')"
_RANK = "(9 - coalesce(review_priority, priority)) * 4503599627370496 + coalesce(review_deadline, 4503599627370495)"
_INDEXES = {
    "jobs_by_review_queue": ([_QUEUE, _RANK, "id"], _WAITS),
    "jobs_to_review": ([_QUEUE, _RANK, "id"], f"{_WAITS} AND assignee IS NULL"),
    "jobs_by_assignee": (["assignee", _RANK, "id"], f"{_WAITS} AND assignee IS NOT NULL"),
    "jobs_by_hold": ([_QUEUE, "held_at"], _WAITS),
    "jobs_escalated": ([_QUEUE, "escalated_at"], f"{_WAITS} AND escalated_at IS NOT NULL"),
}


def upgrade() -> None:
    """Add columns, indexes and tables."""
    op.add_column("jobs", sa.Column("held_at", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("escalated_at", sa.BigInteger(), nullable=True))
    op.execute("UPDATE jobs SET held_at = updated_at WHERE status = 'human'")
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for name, (columns, where) in _INDEXES.items():
        expressions = ", ".join(f"({_RANK})" if column == _RANK and not is_sqlite else column for column in columns)
        op.execute(f"CREATE INDEX {name} ON jobs ({expressions}) WHERE {where}")
    op.add_column("votes", sa.Column("decision", sa.LargeBinary(), nullable=True))
    op.create_index("votes_by_reviewer", "votes", ["reviewer", "at", "job_id"])
    blind = sa.text("decision IS NOT NULL")
    op.create_index("votes_blind", "votes", ["at"], sqlite_where=blind, postgresql_where=blind)
    _create_tables()


def _create_tables() -> None:
    op.create_table(
        "review_queues",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("queue", sa.LargeBinary, nullable=False),
        sa.Column("reported_until", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "review_queue_members",
        sa.Column("member", sa.Text, primary_key=True),
        sa.Column("queue", sa.Text, primary_key=True),
    )
    op.create_table(
        "review_reasons",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "review_bulks",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("bulk", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_review_bulks_created_at", "review_bulks", ["created_at"])
    op.create_table(
        "review_notices",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("lease", sa.Text),
    )
    op.create_index("ix_review_notices_due_at", "review_notices", ["due_at"])
