"""A number for each thing that processes keep a copy of; it grows with every change."""

from __future__ import annotations

import sqlalchemy as sa

from signoff.store import Topic
from signoff.stores.schema import versions
from signoff.stores.writer import Tx


def bump(tx: Tx, topic: Topic) -> None:
    """Counts a change of `topic`, and tells of it."""
    update = sa.update(versions).where(versions.c.topic == topic).values(version=versions.c.version + 1)
    tx.conn.execute(update)
    tx.news.append((topic, ""))
