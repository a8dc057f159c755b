"""What was admitted under a limit, made older than it is: nobody waits a minute in a test."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from signoff.core.limits import SECOND, Admission
from signoff.stores.schema import counters
from signoff.stores.writer import Tx


async def grow_older(store: Any, seconds: float) -> None:
    """Everything that was admitted was so many seconds earlier."""

    def shift(tx: Tx) -> None:
        for name, counter in tx.conn.execute(sa.select(counters.c.name, counters.c.counter)).all():
            entries = tuple(Admission(e.at - round(seconds * SECOND), e.requests, e.tokens) for e in counter.entries)
            older = msgspec.structs.replace(counter, entries=entries)
            tx.conn.execute(sa.update(counters).where(counters.c.name == name).values(counter=older))

    await store._database.write(shift)
