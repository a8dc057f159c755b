"""The prices that this process knows: a copy of the store's."""

from __future__ import annotations

import structlog

from signoff.core.price import Price, Prices
from signoff.errors import SignoffError
from signoff.runtime.snapshot import Snapshot
from signoff.store import UsageRecords

log = structlog.get_logger()


class PriceCache:
    """What models cost. While the store is away, what was known before holds."""

    def __init__(self, ledger: UsageRecords) -> None:
        self._ledger = ledger
        self._prices = Snapshot(self._read)
        self._last = Prices([])

    async def at(self, model: str, now: int) -> Price | None:
        """See `Prices.at`."""
        try:
            self._last = await self._prices.get()
        except SignoffError as error:
            log.warning("the prices could not be read", error=repr(error))
        return self._last.at(model, now)

    def invalidate(self) -> None:
        """The copy is out of date."""
        self._prices.invalidate()

    async def _read(self) -> Prices:
        return Prices(await self._ledger.prices())
