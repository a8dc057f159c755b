"""The connection that answers go out on: made for the first of them, and made anew once it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from signoff.transports.liveness import LivenessWatch, ended


class FastStreamBroker(Protocol):
    """A broker of FastStream's."""

    async def stop(self) -> None: ...


B = TypeVar("B", bound=FastStreamBroker)


class PublisherConnection(Generic[B]):
    """One connection at a time. `make` makes a broker that tells the watch once it is lost; `connect` connects it."""

    def __init__(self, make: Callable[[LivenessWatch], B], connect: Callable[[B], Awaitable[object]]) -> None:
        self._make = make
        self._connect = connect
        self._open: tuple[B, LivenessWatch] | None = None
        self._changing = asyncio.Lock()
        self._is_over = False

    async def connected(self) -> B:
        """The broker. One that was lost is stopped before there is another: it might connect again by itself.

        Raises ConnectionError after `close`, and whatever else keeps it from connecting.
        """
        async with self._changing:
            if self._open is not None and self._open[1].has_failed:
                await self._stop()
            if self._is_over:
                raise ConnectionError("the connection was closed")
            if self._open is None:
                self._open = await self._begun()
            return self._open[0]

    def lost(self, broker: B) -> None:
        """That broker is of no use any more."""
        if self._open is not None and self._open[0] is broker:
            self._open[1].fail(ConnectionError("the connection was lost"))

    async def close(self) -> None:
        """Stops it, for good."""
        self._is_over = True
        async with self._changing:
            await self._stop()

    async def _begun(self) -> tuple[B, LivenessWatch]:
        watch = LivenessWatch()
        broker = self._make(watch)
        try:
            await self._connect(broker)
        except BaseException:
            async with ended(broker.stop):
                raise
        return broker, watch

    async def _stop(self) -> None:
        if self._open is not None:
            (broker, _), self._open = self._open, None
            async with ended(broker.stop):
                pass
