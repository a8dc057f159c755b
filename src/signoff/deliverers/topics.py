"""Answers on topics: each through its stream's own transport, which is kept until the stream changes or goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from signoff.core.delivery import OutgoingMessage
from signoff.core.retry import Backoff, wait_seconds
from signoff.core.stream import Stream
from signoff.errors import NotFound, Undelivered
from signoff.transport import Transport

BACKOFF = Backoff(first_seconds=0.2, ceiling_seconds=2)
log = structlog.get_logger()


class TopicDeliverer:
    """See `deliverer.Deliverer`. A message's address is its stream's name. Waits while the stream's broker is away: it
    holds little meanwhile, and the store the rest.
    """

    def __init__(
        self,
        find: Callable[[str], Awaitable[Stream]],
        reach: Callable[[Stream], Transport],
        *,
        random_float: Callable[[], float],
    ) -> None:
        self._find = find
        self._reach = reach
        self._random_float = random_float
        self._open: dict[str, tuple[Stream, Transport]] = {}
        self._away = set[str]()

    async def start(self) -> None:
        """See `deliverer.Deliverer`. Nothing is needed before the first message."""

    async def send(self, message: OutgoingMessage) -> None:
        """See `deliverer.Deliverer`."""
        attempt = 0
        while not await self._published(message):
            attempt += 1
            await asyncio.sleep(wait_seconds(BACKOFF, attempt, self._random_float()))

    async def close(self) -> None:
        """See `deliverer.Deliverer`."""
        while self._open:
            _, (_, transport) = self._open.popitem()
            await transport.close()

    async def _published(self, message: OutgoingMessage) -> bool:
        try:
            stream = await self._find(message.address)
        except NotFound as error:
            await self._close_the_forgotten()
            raise Undelivered(error.message) from error
        transport = await self._to(stream)
        told = OutgoingMessage(address=stream.responses, headers=message.headers, body=message.body)
        try:
            await transport.publish(told)
        except Undelivered:
            raise
        except Exception as error:  # noqa: BLE001 -- the broker is away
            self._say(stream, error)
            return False
        self._say(stream, None)
        return True

    async def _to(self, stream: Stream) -> Transport:
        known = self._open.get(stream.name)
        if known is not None and known[0] == stream:
            return known[1]
        transport = self._reach(stream)
        self._open[stream.name] = (stream, transport)
        if known is not None:
            await known[1].close()
        await self._close_the_forgotten()
        return transport

    async def _close_the_forgotten(self) -> None:
        for name in list(self._open):
            try:
                await self._find(name)
            except NotFound:
                self._away.discard(name)
                if (forgotten := self._open.pop(name, None)) is not None:
                    await forgotten[1].close()

    def _say(self, stream: Stream, error: Exception | None) -> None:
        """Tells of a change, once. What a library says of an address may hold its password."""
        if error is not None and stream.name not in self._away:
            log.warning(
                "a stream takes no answers; they wait in the store", stream=stream.name, error=type(error).__name__
            )
            self._away.add(stream.name)
        if error is None and stream.name in self._away:
            log.info("a stream takes answers again", stream=stream.name)
            self._away.discard(stream.name)
