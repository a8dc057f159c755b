"""The promise of a courier: it carries messages of one kind to where they are wanted."""

from __future__ import annotations

from typing import Protocol

from signoff.core.delivery import OutgoingMessage


class Deliverer(Protocol):
    """Carries any number of messages at a time; never where it may not go."""

    async def start(self) -> None: ...
    async def send(self, message: OutgoingMessage) -> int | None:
        """The HTTP status that the receiver answered with; None where it took the message without one.
        Raises AddressRefused, Undelivered. May wait for a receiver that is away, until it is cancelled.
        """
        ...

    async def close(self) -> None: ...
