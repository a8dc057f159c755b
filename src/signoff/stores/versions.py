"""Version numbers of what processes keep copies of; each change increments one."""

from typing import Literal

import sqlalchemy as sa

from signoff.store import Topic
from signoff.stores.schema import versions
from signoff.stores.transaction import Tx


def lock(tx: Tx, topic: Topic | Literal["receipts"]) -> None:
    """Lock the version of `topic`, so that no other transaction changes what it stands for before this one ends.

    Call it before touching any row of the topic: transactions that lock in different orders could deadlock.
    """
    tx.conn.execute(sa.select(versions.c.version).where(versions.c.topic == topic).with_for_update())


def change(tx: Tx, topic: Topic, statement: sa.Update | sa.Delete) -> bool:
    """Lock `topic` and execute a statement that changes one row; if there is such a row, increment and return True."""
    lock(tx, topic)
    is_changed = tx.conn.execute(statement).rowcount == 1
    if is_changed:
        bump(tx, topic)
    return is_changed


def bump(tx: Tx, topic: Topic) -> int:
    """Increment the version of `topic`, notify listeners, and return the new version; 0 for a topic without one."""
    update = sa.update(versions).where(versions.c.topic == topic).values(version=versions.c.version + 1)
    tx.changes.append((topic, ""))
    return tx.conn.execute(update.returning(versions.c.version)).scalar_one_or_none() or 0
