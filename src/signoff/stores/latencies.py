"""Histograms of latencies by hour and by day, in SQL; each row has the buckets of one power of two.

They are written with the sums of usage, in the transaction that ends the job.
"""

from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.job import Job
from signoff.core.latency import PARTS, Histogram, LatencyQuery, LatencyRow, bucket_of
from signoff.core.times import DAY_US, HOUR_US
from signoff.stores.latency_schema import LATENCY_COLUMNS, latency_days, latency_hours
from signoff.stores.periods import hours_of, ranges_of
from signoff.stores.transaction import Tx


def count_latency(tx: Tx, job: Job, created_at: int) -> None:
    """Add a job that has just ended to the histograms of its hour and day, if its request went to a model."""
    if job.generation_us is not None:
        hour, ttft_us = created_at // HOUR_US * HOUR_US, job.ttft_us or 0
        tx.at_end(_add_all, ((hour, job.user_id, job.model), ttft_us + job.generation_us, ttft_us))


def _add_all(tx: Tx, latencies: list[tuple[tuple[int, int, str], int, int]]) -> None:
    """Add the latencies of a group of operations, most of which share few rows."""
    rows = dict[tuple[int, int, str, int], list[int]]()
    for group, whole_us, ttft_us in latencies:
        for latency_us, offset in ((whole_us, 0), (ttft_us, PARTS)):
            exponent, part = bucket_of(latency_us)
            row = rows.setdefault((*group, exponent), [0] * len(LATENCY_COLUMNS))
            row[offset + part] += 1
    for (hour, *group), row in rows.items():
        tx.add_to_sum(latency_hours, (hour, *group), tuple(row))
        tx.add_to_sum(latency_days, (hour // DAY_US * DAY_US, *group), tuple(row))


def latencies_statement(query: LatencyQuery) -> sa.Select[Any]:
    """Return the query for the buckets of each group, in order."""
    since, until = hours_of(query.since, query.until)
    parts = list[sa.Select[Any]]()
    is_by_hour = query.by == "hour"
    for table, time, begin, end in ranges_of(
        latency_hours.c.hour, latency_days.c.day, since, until, by_hour=is_by_hour
    ):
        conditions = [time >= begin, *([] if end is None else [time < end])]
        conditions += [] if query.user_id is None else [table.c.user_id == query.user_id]
        columns = [table.c[name] for name in ("model", "exponent", *LATENCY_COLUMNS)]
        parts.append(sa.select(time.label("hour"), *columns).where(*conditions))
    latencies = sa.union_all(*parts).subquery("latency")
    group = _group(query, latencies).label("by")
    sums = [sa.cast(sa.func.sum(latencies.c[name]), sa.BigInteger).label(name) for name in LATENCY_COLUMNS]
    keys = [latencies.c.exponent] if query.by is None else [group, latencies.c.exponent]
    return sa.select(group, latencies.c.exponent, *sums).group_by(*keys)


def _group(query: LatencyQuery, latencies: sa.Subquery) -> ColumnElement[Any]:
    match query.by:
        case None:
            return sa.null()
        case "day":
            return latencies.c.hour // DAY_US * DAY_US
        case name:
            return latencies.c[name]


def rows_of(buckets: Sequence[sa.RowMapping]) -> list[LatencyRow]:
    """Return the histograms of each group from the rows of the query, the group with the most requests first."""
    groups = defaultdict[Any, list[sa.RowMapping]](list)
    for row in buckets:
        groups[row["by"]].append(row)
    rows = [
        LatencyRow(group=group, whole=_histogram(of_group, "whole"), first=_histogram(of_group, "first"))
        for group, of_group in groups.items()
    ]
    return [row for _, row in sorted(((-row.whole.total, row) for row in rows), key=itemgetter(0))]


def _histogram(buckets: Sequence[sa.RowMapping], measure: str) -> Histogram:
    counts = {(row["exponent"], part): row[f"{measure}_{part}"] for row in buckets for part in range(PARTS)}
    return Histogram({bucket: number for bucket, number in counts.items() if number})
