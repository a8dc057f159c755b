"""The promise of a courier: it carries a message to an address that a user gave, if that may be reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Courier(Protocol):
    """Carries one message at a time, as often as it is asked; never where it may not go."""

    async def start(self) -> None: ...
    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> int:
        """The status that the receiver answered with. Raises AddressRefused, Undelivered."""
        ...

    async def close(self) -> None: ...
