"""Index held answers for the next review, and add sums of deliveries, planted items and votes to the figures.

Code of the release before finds its order in `jobs_by_review_queue`, which has the columns of the dropped index.
"""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"

_NO_DEADLINE = 2**52 - 1
_RANK = f"(9 - coalesce(review_priority, priority)) * {2**52} + coalesce(review_deadline, {_NO_DEADLINE})"
_UNASSIGNED = "status = 'human' AND release_at IS NULL AND assignee IS NULL"

_SUMS = (
    *("delivered", "planted", "caught"),
    *("own_approvals", "own_redos", "own_rejections", "other_approvals", "other_redos", "other_rejections"),
)


def upgrade() -> None:
    """Replace the index, and add the sums."""
    rank = _RANK if op.get_bind().dialect.name == "sqlite" else f"({_RANK})"
    order = f"coalesce(review_queue, ''), {rank}, id"
    op.execute(
        f"CREATE INDEX jobs_free_to_review ON jobs ({order}, user_id, round) "
        f"WHERE {_UNASSIGNED} AND review_lease IS NULL"
    )
    op.execute(
        f"CREATE INDEX jobs_opened_to_review ON jobs ({order}, review_lease_until) "
        f"WHERE {_UNASSIGNED} AND review_lease IS NOT NULL"
    )
    op.execute("DROP INDEX jobs_to_review")
    for name in _SUMS:
        op.add_column("review_hours", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    op.execute("UPDATE review_hours SET delivered = approved")
