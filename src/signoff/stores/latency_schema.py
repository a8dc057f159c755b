"""The tables of histograms of latencies."""

import sqlalchemy as sa

from signoff.core.latency import PARTS
from signoff.stores.metadata import metadata

# Counts by bucket: a row has the buckets of one power of two; see `core.latency`.
LATENCY_COLUMNS = tuple(f"{measure}_{part}" for measure in ("whole", "first") for part in range(PARTS))


def _histograms(name: str, time: str) -> sa.Table:
    """Return a table with rows for each period, which begins at `time`, each user and each model."""
    return sa.Table(
        name,
        metadata,
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column(time, sa.BigInteger, nullable=False, index=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("exponent", sa.Integer, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False, info={"sum": True}) for name in LATENCY_COLUMNS),
    )


latency_hours = _histograms("latency_hours", "hour")
latency_days = _histograms("latency_days", "day")
