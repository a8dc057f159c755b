"""Gauges of the latest scrape, so that the database is read only once in some seconds, however often scrapes come."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from signoff.core.metrics import Metric

Gauges = Mapping[Metric, Mapping[tuple[str, ...], float]]


class ScrapeCache:
    """Gauges from the database, by metric and labels."""

    def __init__(self) -> None:
        self._gauges: Gauges = {}
        self._read_at: float | None = None
        self._lock = asyncio.Lock()

    async def get(self, read: Callable[[], Awaitable[Gauges]], *, seconds: float) -> Gauges:
        """Return what `read` returned last, or call it if that was `seconds` ago. Raises what `read` raises."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._read_at is None or now - self._read_at >= seconds:
                self._gauges, self._read_at = await read(), now
            return self._gauges
