"""The tables of review queues, reasons, bulk decisions and digests. Times are microseconds since 1970, UTC."""

import sqlalchemy as sa

from signoff.core.reviews.bulk import Bulk
from signoff.core.reviews.queues import ReviewQueue
from signoff.stores.json_column import JsonColumn
from signoff.stores.metadata import metadata

review_queues = sa.Table(
    "review_queues",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("queue", JsonColumn(ReviewQueue), nullable=False),
    sa.Column("reported_until", sa.BigInteger, nullable=False),
)

review_queue_members = sa.Table(
    "review_queue_members",
    metadata,
    sa.Column("member", sa.Text, primary_key=True),
    sa.Column("queue", sa.Text, primary_key=True),
)

review_reasons = sa.Table(
    "review_reasons",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("reason", sa.Text, nullable=False),
)

review_bulks = sa.Table(
    "review_bulks",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("bulk", JsonColumn(Bulk), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False, index=True),
)

# Digests that were not received yet.
review_notices = sa.Table(
    "review_notices",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("due_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("lease", sa.Text),
)
