"""What was admitted under a limit, made older than it is: nobody waits a minute in a test."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from signoff.core.limits import SECOND, Admitted
from signoff.stores.schema import meters
from signoff.stores.writer import Tx


async def grow_older(store: Any, seconds: float) -> None:
    """Everything that was admitted was so many seconds earlier."""

    def shift(tx: Tx) -> None:
        for name, meter in tx.conn.execute(sa.select(meters.c.name, meters.c.meter)).all():
            entries = tuple(Admitted(e.at - round(seconds * SECOND), e.requests, e.tokens) for e in meter.entries)
            older = msgspec.structs.replace(meter, entries=entries)
            tx.conn.execute(sa.update(meters).where(meters.c.name == name).values(meter=older))

    await store._database.write(shift)
