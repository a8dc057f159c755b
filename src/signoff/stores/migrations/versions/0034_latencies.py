"""Add histograms of latencies by hour and by day."""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0032"

COLUMNS = [f"{measure}_{part}" for measure in ("whole", "first") for part in range(8)]


def upgrade() -> None:
    """Create the tables, which start empty; an older server does not write them."""
    for table, time in (("latency_hours", "hour"), ("latency_days", "day")):
        op.create_table(
            table,
            sa.Column("key", sa.Text, primary_key=True),
            sa.Column(time, sa.BigInteger, nullable=False),
            sa.Column("user_id", sa.Integer, nullable=False),
            sa.Column("model", sa.Text, nullable=False),
            sa.Column("exponent", sa.Integer, nullable=False),
            *(sa.Column(name, sa.BigInteger, nullable=False) for name in COLUMNS),
        )
        op.create_index(f"ix_{table}_{time}", table, [time])
