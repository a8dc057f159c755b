"""The prices that this process knows: a copy of the store's."""

from __future__ import annotations

import structlog

from signoff.core.price import Price, Prices
from signoff.errors import SignoffError
from signoff.store import Ledger

log = structlog.get_logger()


class PriceList:
    """What models cost. While the store is away, what was known before holds."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._prices = Prices([])
        self._is_old = True
        self._age = 0

    async def at(self, model: str, now: int) -> Price | None:
        """See `Prices.at`."""
        if self._is_old:
            await self._reload()
        return self._prices.at(model, now)

    def forget(self) -> None:
        """The copy is out of date."""
        self._age += 1
        self._is_old = True

    async def _reload(self) -> None:
        age = self._age
        try:
            self._prices = Prices(await self._ledger.prices())
        except SignoffError as error:
            log.warning("the prices could not be read", error=repr(error))
        else:
            self._is_old = age != self._age  # then it may have changed since it was read
