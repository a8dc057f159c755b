"""Answers on topics, each through a transport of its stream, which is open until the stream changes or is deleted."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from signoff.core.delivery import OutgoingMessage
from signoff.core.retry import Backoff, wait_seconds
from signoff.core.stream import Stream
from signoff.errors import NotFound, Undelivered
from signoff.transport import Transport

BACKOFF = Backoff(first_seconds=0.2, ceiling_seconds=2)
log = structlog.get_logger()


class TopicDeliverer:
    """A publisher of answers to streams; see `deliverer.Deliverer`.

    The address of a message is the name of its stream. `find` returns a stream by name and raises NotFound, `connect`
    creates a transport. `send` waits while the broker is unavailable. Few messages are held in memory then; all others
    wait in the store.
    """

    def __init__(
        self,
        find: Callable[[str], Awaitable[Stream]],
        connect: Callable[[Stream], Transport],
        *,
        random_float: Callable[[], float],
    ) -> None:
        self._find = find
        self._connect = connect
        self._random_float = random_float
        self._open: dict[str, tuple[Stream, Transport]] = {}
        self._unavailable = set[str]()

    async def start(self) -> None:
        """See `deliverer.Deliverer`. A transport is created with the first message of its stream."""

    async def send(self, message: OutgoingMessage) -> None:
        """See `deliverer.Deliverer`."""
        attempt = 0
        while not await self._try_publish(message):
            attempt += 1
            await asyncio.sleep(wait_seconds(BACKOFF, attempt, self._random_float()))

    async def withdraw(self, addresses: Sequence[str]) -> None:
        """See `deliverer.Deliverer`. Do nothing: topics keep what was published."""

    async def is_available(self) -> bool:
        """See `deliverer.Deliverer`."""
        return True

    async def close(self) -> None:
        """See `deliverer.Deliverer`."""
        while self._open:
            _, (_, transport) = self._open.popitem()
            await transport.close()

    async def _try_publish(self, message: OutgoingMessage) -> bool:
        try:
            stream = await self._find(message.address)
        except NotFound as error:
            await self._close_unused()
            raise Undelivered(error.message) from error
        transport = await self._transport_of(stream)
        answer = OutgoingMessage(address=stream.responses, headers=message.headers, body=message.body)
        try:
            await transport.publish(answer)
        except Undelivered:
            raise
        except Exception as error:  # noqa: BLE001 -- any other error means that the broker is unavailable
            self._report(stream, error)
            return False
        self._report(stream, None)
        return True

    async def _transport_of(self, stream: Stream) -> Transport:
        """Return the open transport of `stream`; open one, and close that of an earlier version of the stream."""
        old = self._open.get(stream.name)
        if old is not None and old[0] == stream:
            return old[1]
        transport = self._connect(stream)
        self._open[stream.name] = (stream, transport)
        if old is not None:
            await old[1].close()
        await self._close_unused()
        return transport

    async def _close_unused(self) -> None:
        """Close the transports of streams that were deleted."""
        for name in list(self._open):
            try:
                await self._find(name)
            except NotFound:
                self._unavailable.discard(name)
                if (unused := self._open.pop(name, None)) is not None:
                    await unused[1].close()

    def _report(self, stream: Stream, error: Exception | None) -> None:
        """Log that a broker has become unavailable or available, once for each change.

        The text of a ConnectionError may be shown; that of another error may contain a password.
        """
        if error is not None and stream.name not in self._unavailable:
            text = str(error) if type(error) is ConnectionError else type(error).__name__
            log.warning("stream_delivery_unavailable", stream=stream.name, error=text)
            self._unavailable.add(stream.name)
        if error is None and stream.name in self._unavailable:
            log.info("stream_delivery_available", stream=stream.name)
            self._unavailable.discard(stream.name)
