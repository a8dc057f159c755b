"""Deletion of jobs and calls, with their rows in all tables."""

from collections.abc import Sequence

import sqlalchemy as sa

from signoff.stores.objects_schema import created_objects
from signoff.stores.receipts_schema import receipt_salts
from signoff.stores.schema import (
    calls,
    decisions,
    deliveries,
    departures,
    events,
    function_calls,
    jobs,
    used_keys,
    votes,
)
from signoff.stores.transaction import Tx

_OF_JOBS = (
    events,
    votes,
    decisions,
    deliveries,
    departures,
    used_keys,
    function_calls,
    created_objects,
    receipt_salts,
)


def delete_jobs(tx: Tx, ids: Sequence[str]) -> None:
    """Delete jobs with all records of them, except their receipts and what they used."""
    if ids:
        for table in _OF_JOBS:
            tx.conn.execute(sa.delete(table).where(table.c.job_id.in_(ids)))
        tx.conn.execute(sa.delete(jobs).where(jobs.c.id.in_(ids)))


def delete_calls(tx: Tx, ids: Sequence[str]) -> None:
    """Delete calls that ended at once."""
    if ids:
        tx.conn.execute(sa.delete(created_objects).where(created_objects.c.job_id.in_(ids)))
        tx.conn.execute(sa.delete(calls).where(calls.c.id.in_(ids)))
