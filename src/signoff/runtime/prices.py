"""Cache of the prices of models."""

import structlog

from signoff.accounts import UsageRecords
from signoff.core.price import Price, Prices
from signoff.runtime.snapshot import Snapshot

log = structlog.get_logger()


class PriceCache:
    """Prices by model. While the store is unavailable, the last known prices apply."""

    def __init__(self, usage: UsageRecords) -> None:
        self._usage = usage
        self._snapshot = Snapshot(self._read)
        self._last = Prices([])

    async def at(self, model: str, now: int) -> Price | None:
        """See `Prices.at`."""
        try:
            self._last = await self._snapshot.get()
        except Exception as error:  # noqa: BLE001 -- an answer that has come must be recorded, also without its cost
            log.warning("price_lookup_failed", error=repr(error))
        return self._last.at(model, now)

    def invalidate(self) -> None:
        """Clear the cache."""
        self._snapshot.invalidate()

    async def _read(self) -> Prices:
        return Prices(await self._usage.prices())
