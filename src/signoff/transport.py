"""The promise of a transport: a stream's messages come through it, and its answers go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage

# Returns once the message may be acknowledged; it is not to be cut off.
OnMessage = Callable[[IncomingMessage], Awaitable[None]]


class Transport(Protocol):
    """The way to one stream's broker. Messages come on one connection and go on another."""

    @property
    def is_exclusive(self) -> bool:
        """Whether one process at a time may listen."""
        ...

    async def listen(self, take: OnMessage, is_up: Callable[[], None]) -> None:
        """Hands every message to `take`, as many at a time as the stream says, and acknowledges it after that. Calls
        `is_up` once messages come. Goes on until something goes wrong, which raises; whatever was not acknowledged
        comes again.
        """
        ...

    async def publish(self, message: OutgoingMessage) -> None:
        """Returns once the broker has the message for good; `address` is the topic, `message-id` stands in `headers`.
        Raises Undelivered where the broker refuses it, and anything else where it may be tried again at once.
        """
        ...

    async def close(self) -> None:
        """Ends the connection that `publish` made."""
        ...
