"""Add what lists of held answers order and filter by to their indexes, so that a page reads no other answers.

Code of the release before finds the first columns of both indexes where they were.
"""

from alembic import op

revision = "0037"
down_revision = "0034"

_NO_DEADLINE = 2**52 - 1
_RANK = f"(9 - coalesce(review_priority, priority)) * {2**52} + coalesce(review_deadline, {_NO_DEADLINE})"
_WAITS = "status = 'human' AND release_at IS NULL"


def upgrade() -> None:
    """Replace the indexes."""
    rank = _RANK if op.get_bind().dialect.name == "sqlite" else f"({_RANK})"
    orders = {
        "jobs_by_review_queue": f"coalesce(review_queue, ''), {rank}, id, held_at, target",
        "jobs_by_hold": "coalesce(review_queue, ''), held_at, id, target",
    }
    for name, order in orders.items():
        op.execute(f"DROP INDEX {name}")
        op.execute(f"CREATE INDEX {name} ON jobs ({order}) WHERE {_WAITS}")
