"""A change of the time of reservations, so that no test waits until a minute has passed."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from signoff.core.counters import Admission
from signoff.core.times import SECOND_US
from signoff.stores.limits_schema import counters
from signoff.stores.transaction import Tx


async def grow_older(store: Any, seconds: float) -> None:
    """Move all that was admitted under limits into the past by `seconds`, and drop the sums, as in earlier versions."""

    def shift(tx: Tx) -> None:
        for name, counter in tx.conn.execute(sa.select(counters.c.name, counters.c.counter)).all():
            entries = tuple(Admission(e.at - round(seconds * SECOND_US), e.requests, e.tokens) for e in counter.entries)
            older = msgspec.structs.replace(counter, entries=entries, requests=0, tokens=0)
            tx.conn.execute(sa.update(counters).where(counters.c.name == name).values(counter=older))

    await store._database.write(shift)
