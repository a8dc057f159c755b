"""Interface of a transport: it receives the messages of a stream, and publishes their answers."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage

OnMessage = Callable[[IncomingMessage], Awaitable[None]]
"""A handler of one message. It returns when the message may be acknowledged; an exception means that it may not."""


class Transport(Protocol):
    """The connection of one stream to its broker. Receiving and publishing use separate connections."""

    @property
    def is_exclusive(self) -> bool:
        """True if only one process at a time may call `listen`; the caller sees to that with `Streams.acquire_lead`."""
        ...

    async def listen(self, on_message: OnMessage, on_ready: Callable[[], None]) -> None:
        """Receive the messages of the stream's request topic until an error occurs; never return normally.

        Connect, call `on_ready` once when messages can arrive, and await `on_message` for each message: for at most
        `max_handlers` of the stream at the same time. Acknowledge a message after `on_message` returned. When the call
        ends or is cancelled, give running handlers a few seconds to finish. The broker delivers messages again that
        were not acknowledged, so a message may come more than once.

        Raises whatever ended the connection; the caller calls `listen` again. The text of a ConnectionError is shown to
        operators, so it must not contain a password.
        """
        ...

    async def publish(self, message: OutgoingMessage) -> None:
        """Publish `message`, and return when the broker has stored it.

        `message.address` is the topic. `message.headers["message-id"]` is an id that is the same for each attempt at
        this message; publish it with the message if the protocol allows that. Connect first if necessary. Calls may run
        at the same time.

        Raises:
            Undelivered: The broker refused the message.
            Exception: Anything else, for example because the broker is away; the caller tries again soon.
        """
        ...

    async def close(self) -> None:
        """Close the connection that `publish` uses. Later calls of `publish` raise ConnectionError."""
        ...
