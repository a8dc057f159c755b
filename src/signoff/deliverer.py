"""Interface of a delivery adapter: it sends messages of one kind to their receivers."""

from collections.abc import Sequence
from typing import Protocol

from signoff.core.delivery import OutgoingMessage


class Guardrail(Protocol):
    """An adapter that asks a webhook about an answer of a model; what it returns becomes a signal for policies."""

    async def ask(self, message: OutgoingMessage, *, seconds: float) -> bytes:
        """Send `message`, and return the body of the receiver's answer, which comes within `seconds`.

        Raises:
            AddressRefused: The address is not valid, or the allow-list does not permit it.
            Undelivered: The receiver did not answer in time, not with the status 200, or with too large a body.
        """
        ...


class Deliverer(Protocol):
    """An adapter that sends messages of one `DeliveryKind`. Any number of `send` calls may run at the same time.

    It makes one attempt per call: retries after a failure, their schedule and their records belong to the caller.
    """

    async def start(self) -> None:
        """Prepare for sending. Called once, before the first `send`. Do not fail if the receiver is away."""
        ...

    async def send(self, message: OutgoingMessage) -> int | None:
        """Send `message` and return the receiver's HTTP status, or None if the receiver accepted it without a status.

        Every status is returned, also one that signals an error; redirects are not followed. The call may wait for a
        receiver that is away until the caller cancels it. A message may arrive more than once, for example if a call is
        cancelled after the receiver got it.

        Raises:
            AddressRefused: The address is not valid, or the allow-list does not permit it.
            Undelivered: The receiver did not accept the message; a later attempt may succeed.
        """
        ...

    async def withdraw(self, addresses: Sequence[str]) -> None:
        """Delete what `send` has stored under these addresses, if the receiver stores messages for this server.

        Raises whatever the client of the receiver raises while that is unavailable.
        """
        ...

    async def is_available(self) -> bool:
        """Return True if the one receiver of all messages answers, or if each message has a receiver of its own."""
        ...

    async def close(self) -> None:
        """Release connections. Called once, after all calls of `send` have ended."""
        ...


class Mailer(Protocol):
    """A mail server."""

    async def send(self, message_id: str, to: Sequence[str], subject: str, text: str) -> None:
        """Send one plain message to all addresses, with `message_id` as its id at every attempt.

        Raises Undelivered if the server does not accept it; a later attempt may succeed.
        """
        ...
