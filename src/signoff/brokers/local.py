"""Broker of a single process. Other processes learn of jobs from the store's notifications."""

import asyncio


class LocalBroker:
    """See `broker.Broker`."""

    is_connected = True

    def __init__(self) -> None:
        self._wake_up = asyncio.Event()

    async def start(self) -> None:
        """See `broker.Broker`: nothing to start."""

    def notify(self, job_id: str, priority: int) -> None:
        """See `broker.Broker`."""
        self._wake_up.set()

    def wake_local(self) -> None:
        """See `broker.Broker`. Needed because a `notify` in another process does not arrive here."""
        self._wake_up.set()

    async def poll(self, seconds: float) -> bool:
        """See `broker.Broker`."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake_up.wait()
        except TimeoutError:
            return False
        self._wake_up.clear()
        return True

    async def close(self) -> None:
        """See `broker.Broker`: nothing to close."""
