"""Connection on which answers are published: opened on first use, and again after it is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from signoff.transports.liveness import LivenessWatch, stopping


class FastStreamBroker(Protocol):
    """Any broker of FastStream."""

    async def stop(self) -> None: ...


B = TypeVar("B", bound=FastStreamBroker)


class PublisherConnection(Generic[B]):
    """Holder of at most one connected broker.

    `create` returns a broker that reports the loss of its connection to the given watch; `connect` connects it.
    """

    def __init__(self, create: Callable[[LivenessWatch], B], connect: Callable[[B], Awaitable[object]]) -> None:
        self._create = create
        self._connect = connect
        self._current: tuple[B, LivenessWatch] | None = None
        self._lock = asyncio.Lock()
        self._is_closed = False

    async def get(self) -> B:
        """Return the connected broker.

        A broker that was lost is stopped before a new one is created, because it might reconnect by itself. Raises
        ConnectionError after `close`, and any error of connecting.
        """
        async with self._lock:
            if self._current is not None and self._current[1].has_failed:
                await self._stop()
            if self._is_closed:
                raise ConnectionError("The transport is closed.")
            if self._current is None:
                self._current = await self._connect_new()
            return self._current[0]

    def mark_lost(self, broker: B) -> None:
        """Report that `broker` cannot be used any more; the next `get` replaces it."""
        if self._current is not None and self._current[0] is broker:
            self._current[1].fail(ConnectionError("The connection was lost."))

    async def close(self) -> None:
        """Stop the broker for good."""
        self._is_closed = True
        async with self._lock:
            await self._stop()

    async def _connect_new(self) -> tuple[B, LivenessWatch]:
        watch = LivenessWatch()
        broker = self._create(watch)
        try:
            await self._connect(broker)
        except BaseException:
            async with stopping(broker.stop):
                raise
        return broker, watch

    async def _stop(self) -> None:
        if self._current is not None:
            (broker, _), self._current = self._current, None
            async with stopping(broker.stop):
                pass
