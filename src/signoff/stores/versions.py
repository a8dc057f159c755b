"""A number for each thing that processes keep a copy of; it grows with every change."""

from __future__ import annotations

import sqlalchemy as sa

from signoff.store import Topic
from signoff.stores.schema import versions
from signoff.stores.writer import Tx


def lock(tx: Tx, topic: Topic) -> None:
    """Until this transaction ends nobody else changes what `topic` is about. To be asked for before any of its rows:
    who changes them counts that, and two who did so in different orders would wait for each other.
    """
    tx.conn.execute(sa.select(versions.c.version).where(versions.c.topic == topic).with_for_update())


def change(tx: Tx, topic: Topic, statement: sa.Update | sa.Delete) -> bool:
    """Runs what changes one row of `topic`, in its turn, and counts that; whether there was such a row."""
    lock(tx, topic)
    is_changed = tx.conn.execute(statement).rowcount == 1
    if is_changed:
        bump(tx, topic)
    return is_changed


def bump(tx: Tx, topic: Topic) -> int:
    """Counts a change of `topic`, tells of it, and gives the new number; 0 where nothing counts it."""
    update = sa.update(versions).where(versions.c.topic == topic).values(version=versions.c.version + 1)
    tx.changes.append((topic, ""))
    return tx.conn.execute(update.returning(versions.c.version)).scalar_one_or_none() or 0
